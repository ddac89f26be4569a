"""`cachebus demo`, as a process: it keeps its promises, tells when one breaks, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from cachebus.cli.main import run
from cachebus.tools.servers.postgres import PostgresServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.command import ROOT, Command, all_gone, cachebus, ran
from tests.support.servers import any_binary

SMALL = ("--nodes", "2", "--rate", "400", "--bound", "0.5", "--duration", "5")
MANY_WRITES = ("--write-ratio", "0.1")
LONG = ("--nodes", "2", "--rate", "200", "--duration", "50")


def nodes_of(command: Command) -> list[int]:
    """The processes that are nodes."""
    return [
        pid for pid in command.children() if b"cachebus.tools.demo.node" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_the_whole_show(tmp_path: Path) -> None:
    any_binary()
    status, out, errors = ran("demo", *SMALL, *MANY_WRITES, "--json", folder=tmp_path)
    assert status == 0, errors
    told = json.loads(out)
    cachebus_, off, incident = told["cachebus"], told["coherence_off"], told["incident"]
    assert told["broken"] == []
    assert cachebus_["checked"] == cachebus_["reads"] > 1_000
    assert cachebus_["writes"] > 50
    assert cachebus_["lags"]["pairs"] > 50
    assert (cachebus_["stale_beyond"], cachebus_["own_missed"], cachebus_["failed"]) == (0, 0, 0)
    assert 0 < cachebus_["lags"]["p50_s"] < 0.5
    assert incident["node"] == 2
    assert incident["lease_lapsed_after_s"] > 0
    assert incident["recovered_after_s"] is not None
    # The check finds what there is to be found: without coherence there is plenty.
    assert off["stale_beyond"] > 0
    assert off["oldest_s"] > 0.5
    for line in ("its connections hang", "its lease has lapsed", "its network is back", "caught up on"):
        assert line in errors


@pytest.mark.parametrize("way", ["outbox", "cdc"])
def test_the_whole_road_loses_nothing_though_a_worker_is_killed(
    tmp_path: Path, postgres: PostgresServer, way: str
) -> None:
    """`postgres` is asked for only to skip where there is none: the demo starts its own."""
    status, out, errors = ran("demo", *SMALL, *MANY_WRITES, "--writes", way, "--no-compare", "--json", folder=tmp_path)
    assert status == 0, errors
    told = json.loads(out)
    figures = told["cachebus"]
    assert (told["writes"], told["broken"]) == (way, [])
    assert figures["writes"] > 50
    assert (figures["lost"], figures["lags"]["unheard"], figures["stale_beyond"]) == (0, 0, 0)
    assert figures["lags"]["pairs"] > figures["writes"]  # on each of the nodes
    assert figures["lags"]["p50_s"] > 0
    for line in ("and: PostgreSQL, 2 workers", "worker 1 of 2 is killed", "another worker takes its place"):
        assert line in errors


def test_a_road_needs_time_to_be_walked(tmp_path: Path) -> None:
    any_binary()
    status, _, errors = ran("demo", *SMALL, "--duration", "1.9", "--writes", "outbox", folder=tmp_path)
    assert status == 2
    assert "1.9 s are too short for workers" in errors
    assert "2 s would do (--duration)" in errors


def test_plain_lines_and_a_report(tmp_path: Path) -> None:
    any_binary()
    status, out, errors = ran("demo", *SMALL, "--duration", "3.2", "--no-compare", "--no-cut", folder=tmp_path)
    assert (status, errors) == (0, "")
    assert re.search(r"^   3 s   9\d%  cachebus: 2 nodes, 1.0% writes, staleness bound 0.5 s$", out, re.MULTILINE)
    assert "  node 2: " in out
    assert "\nKEPT: of " in out
    assert "\x1b" not in out


def test_a_run_too_short_for_its_cut_says_so(tmp_path: Path) -> None:
    _, out, _ = ran("demo", *SMALL, "--duration", "1", "--no-compare", folder=tmp_path)
    assert "no connection is cut: 1 s are too short for that, 2.5 s would do (--duration)" in out


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "server: "), (signal.SIGINT, "node 2: "), (signal.SIGTERM, "node 2: ")]
)
def test_a_signal_ends_all(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    """At the start, and in the middle."""
    any_binary()
    with cachebus("demo", *LONG, folder=tmp_path) as command:
        command.read_until(moment)
        children = command.children()
        assert children
        status, errors = command.signal(number)
        assert (status, errors) == (128 + number, f"cachebus: stopped by {number.name}\n")
        assert all_gone(children)
        assert command.left() == []


def test_killed_it_takes_all_its_processes_along(tmp_path: Path) -> None:
    any_binary()
    with cachebus("demo", *LONG, folder=tmp_path) as command:
        command.read_until("node 2: ")
        children = command.children()
        assert len(nodes_of(command)) == 2
        assert len(children) > 2
        command.signal(signal.SIGKILL)
        assert all_gone(children)


def test_a_node_that_dies_is_told(tmp_path: Path) -> None:
    any_binary()
    with cachebus("demo", *LONG, folder=tmp_path) as command:
        command.read_until("node 2: ")
        os.kill(nodes_of(command)[0], signal.SIGKILL)
        out, errors = command.process.communicate()
        assert command.process.returncode == 1
        assert "BROKEN: node" in out
        assert "ended with status -9" in out
        assert errors == ""
        assert command.left() == []


DEAF = """
import cachebus.core.node
cachebus.core.node.Node._drop_keys = lambda self, keys, seq: None
"""


def test_a_broken_promise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that apply events and keep what these replace: the check must find it."""
    any_binary()
    folder, spoiled = tmp_path / "temporary", tmp_path / "spoiled"
    folder.mkdir()
    spoiled.mkdir()
    (spoiled / "sitecustomize.py").write_text(DEAF)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{spoiled}")
    status, out, _ = ran("demo", *SMALL, *MANY_WRITES, "--duration", "3", "--no-compare", folder=folder)
    assert status == 1
    assert "BROKEN: " in out
    assert "KEPT" not in out


def test_a_server_of_the_users_is_left_as_it_was(tmp_path: Path) -> None:
    with EmbeddedServer(any_binary(), password="hunter2") as server:
        server.command("SET", "cachebus-demo", "mine")
        with cachebus(
            "demo", *SMALL, "--duration", "3.2", "--no-cut", "--no-compare", "--redis-url", server.url, folder=tmp_path
        ) as command:
            command.read_until("node 2: ")
            assert not [pid for pid in nodes_of(command) if b"hunter2" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            assert server.command("DBSIZE") != ":1"
            out, errors = command.process.communicate()
        assert (command.process.returncode, errors) == (0, "")
        assert "hunter2" not in out
        assert server.command("DBSIZE") == ":1"


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one line with which the command declines, with status 2."""
    monkeypatch.setattr("sys.argv", ["cachebus", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    out, errors = capsys.readouterr()
    assert out == ""
    (line,) = errors.splitlines()
    return line


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:hunter2@127.0.0.1:1/0", "127.0.0.1:1"),
        ("redis://user:hunter2@no-such-host.invalid:6390", "no-such-host.invalid:6390"),
        ("redis://user:hunter2@localhost:nonsense", "localhost"),
        ("ftp://user:hunter2@localhost", "redis://"),
        ("memory://", "inside one process"),
        ("unix:///no/such.sock", "/no/such.sock"),
    ],
)
def test_a_server_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    line = refused(capsys, monkeypatch, "demo", "--redis-url", url)
    assert line.startswith("cachebus: ")
    assert words in line
    assert "hunter2" not in line


def test_a_wrong_password_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedServer(any_binary(), password="swordfish") as server:
        line = refused(capsys, monkeypatch, "demo", "--redis-url", f"redis://:hunter2@127.0.0.1:{server.port}")
    assert f"127.0.0.1:{server.port}" in line
    assert "hunter2" not in line


def test_no_server_on_this_machine_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachebus.tools.servers.redis_binaries.find_servers", list)
    assert "pip install 'cachebus[embedded]'" in refused(capsys, monkeypatch, "demo")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--version",), "cachebus 0."),
        (("--help",), "demo"),
        (("demo", "--help"), "leaves nothing behind"),
        (("replay", "--help"), "TRACE"),
    ],
)
def test_it_explains_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr("sys.argv", ["cachebus", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 0
    assert words in capsys.readouterr().out
