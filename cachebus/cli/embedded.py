"""A real Redis or Valkey server without installing one: for tests, the demo and a first try on a laptop.

A server listens on 127.0.0.1 alone, keeps nothing on disk unless asked to, and ends with the process that started it,
however that process ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom
from typing import Final, Self
from urllib.parse import quote

from cachebus.cli.child import end, spawn
from cachebus.cli.server_binaries import MISSING, Origin, ServerBinary, best_server, find_servers
from cachebus.clock import monotonic
from cachebus.errors import ConfigError

__all__ = ["MISSING", "EmbeddedServer", "Origin", "ServerBinary", "best_server", "find_servers", "free_port"]

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.01
ASK_TIMEOUT_S: Final = 2.0
LOG_TAIL_LINES: Final = 8
PORTS: Final = (11_000, 22_000)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on.

    Chosen below the range from which the system takes ports for outgoing connections: there, a client that keeps
    trying to reach a stopped server may be given that very port, connect to itself, and keep the server from returning.
    The upper end leaves room for the port + 10000 that a Cluster node uses besides.
    """
    dice = SystemRandom()  # a test that seeds `random` must not give two servers one port
    while True:
        port = dice.randrange(*PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


class EmbeddedServer:
    """One server process on 127.0.0.1; a context manager that starts and stops it. It ends with this object, too.

    Its calls block for some milliseconds: from a coroutine that must not wait, use `asyncio.to_thread`.

    `binary`: which program, by default `best_server()`. `port`: by default a free one, kept over restarts.
    `directory`: where it works, by default one of its own, which `stop` removes (a given one stays). `password`: asked
    of every client. `appendonly`: keep every write, so that data outlives `kill` and `restart`. `extra`: more arguments
    for the server, such as `("--maxmemory", "1mb")`; `conf`: more lines of its configuration file.
    """

    def __init__(
        self,
        binary: ServerBinary | None = None,
        *,
        port: int | None = None,
        directory: Path | None = None,
        password: str | None = None,
        appendonly: bool = False,
        extra: Sequence[str] = (),
        conf: Sequence[str] = (),
    ) -> None:
        self.binary = binary or best_server()
        self.port = port or free_port()
        self.password = password
        self._given = directory
        self._directory = directory
        self._appendonly = appendonly
        self._extra = tuple(extra)
        self._conf = tuple(conf)
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., EmbeddedServer] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its address: "redis://127.0.0.1:11042/0", with the password where there is one."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}{HOST}:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether its process lives (a paused one does)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id. `ConfigError` where it does not run."""
        return self._alive().pid

    @property
    def directory(self) -> Path:
        """Where it works, with its `server.log`. `ConfigError` where it has none: before `start` and after `stop`."""
        if self._directory is None:
            raise ConfigError("the server has no directory before it is started")
        return self._directory

    def start(self) -> Self:
        """Start it and wait until it answers. Nothing happens if it runs. `ConfigError` shows the end of its log."""
        if self.running:
            return self
        self._refuse_a_taken_port()
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="cachebus-"))
        command = [str(self.binary.path), str(self._write_conf()), *self._extra]
        self._process = process = spawn(command, log=self._directory / "server.log")
        self._end = weakref.finalize(self, end, process, None if self._given else self._directory)
        try:
            self._until_it_answers(process)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it, and remove its directory if that was its own. Nothing happens if it does not run."""
        if self._given is not None and self.running:
            self._terminate()  # what it holds is somebody's: let it write that
        if self._end is not None:
            self._end()
        self._process, self._end, self._directory = None, None, self._given

    def kill(self) -> None:
        """End it at once by SIGKILL, as a crash would. Its port and directory stay for `start`."""
        process = self._alive()
        process.kill()
        process.wait()

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): connections stay open and nothing is answered, as when a network hangs."""
        self._alive().send_signal(signal.SIGSTOP)
        if sys.platform == "linux":  # the signal takes a moment: after this no further command is answered
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._alive().send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """End it in order, if it runs, and start it again on the same port, with what its directory holds."""
        if self.running:
            self._terminate()
        self.start()

    def command(self, *args: str) -> str:
        """Send one command over a connection of its own; gives the reply's first line, such as "+OK" or ":3".

        For set-up and inspection. `OSError` where it cannot be reached or does not answer in 2 s.
        """
        with self._connected() as connection, connection.makefile("rb") as said:
            if self.password:
                connection.sendall(_packed("AUTH", self.password))
                said.readline()
            connection.sendall(_packed(*args))
            return said.readline().decode().rstrip("\r\n")

    def log_tail(self) -> str:
        """The last lines of its log, or "" where there is none."""
        try:
            text = (self.directory / "server.log").read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ConfigError(f"the server {self.binary.name} on port {self.port} does not run")
        return self._process

    def _terminate(self) -> None:
        process = self._alive()
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a paused one hears nothing before it goes on
        try:
            process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _write_conf(self) -> Path:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.directory),
            "appendonly": "yes" if self._appendonly else "no",
            "save": "",
            "requirepass": self.password or "",
        }
        conf = self.directory / "server.conf"
        conf.touch(mode=0o600)  # a file and not arguments, so that `ps` does not show the password
        lines = [*(f"{name} {_quoted(value)}" for name, value in settings.items()), *self._conf]
        conf.write_text("".join(f"{line}\n" for line in lines))
        return conf

    def _connected(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), ASK_TIMEOUT_S)

    def _refuse_a_taken_port(self) -> None:
        try:
            self._connected().close()
        except OSError:
            return
        # Else the stranger there would answer the first PING, and pass for this server.
        raise ConfigError(f"port {self.port} of {HOST} is taken: give another, or none")

    def _until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = monotonic() + START_TIMEOUT_S
        while not self._answers():
            try:
                status = process.wait(POLL_S)  # rather than a sleep: returns at once when the process ends
            except subprocess.TimeoutExpired:
                if monotonic() < deadline:
                    continue
                what = f"does not answer after {START_TIMEOUT_S:g} s"
            else:
                what = f"ended with status {status}"
            raise ConfigError(f"{self.binary.name} on port {self.port} {what}; its log ends:\n{self.log_tail()}")

    def _answers(self) -> bool:
        try:
            return self.command("PING") == "+PONG"  # while it loads its data it answers -LOADING
        except OSError:
            return False


def _packed(*args: str) -> bytes:
    parts = [arg.encode() for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
