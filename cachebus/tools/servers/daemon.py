"""The base of all server processes: a directory, a port, a log, and how a server is started and ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from random import SystemRandom
from typing import Final, Self

from cachebus.base.clock import monotonic
from cachebus.errors import ConfigError
from cachebus.tools.servers.child import end, spawn

HOST: Final = "127.0.0.1"
PORTS: Final = (11_000, 21_000)
POLL_S: Final = 0.01
ASK_TIMEOUT_S: Final = 2.0
LOG_TAIL_LINES: Final = 12


def free_port(owner: object | None = None) -> int:
    """A free port of 127.0.0.1. As long as `owner` lives no other process gets it from here, whether or not a server
    listens on it.

    It lies below the range from which the system takes ports for outgoing connections. In that range, a client that
    keeps trying to reach a stopped server may get that very port, connect to itself, and block the server's return. The
    upper end leaves room for port + 10000, which a Cluster node uses too: those lie above all others.
    """
    rng = SystemRandom()  # a test that seeds `random` must not give two servers one port
    while True:
        port = rng.randrange(*PORTS)
        promise = socket.socket(type=socket.SOCK_DGRAM)  # a UDP socket reserves it: the servers use TCP
        try:
            promise.bind((HOST, port))
            with socket.socket() as probe:
                probe.bind((HOST, port))
        except OSError:
            promise.close()
            continue
        if owner is None:
            promise.close()
        else:
            weakref.finalize(owner, promise.close)
        return port


class Daemon(ABC):
    """A server process on 127.0.0.1; a context manager that starts and stops it. It also ends with this object.

    Calls block until the server answers: from a coroutine use `asyncio.to_thread`. `port`: by default a free one, kept
    over restarts. `directory`: its working directory, by default a new one, which `stop` removes; a given one stays.
    """

    START_TIMEOUT_S = 30.0
    name = "the server"

    def __init__(self, *, port: int | None = None, directory: Path | None = None) -> None:
        self.port = port or free_port(self)
        self._given = directory
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Daemon] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether its process lives, also if it is paused."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id. `ConfigError` where it does not run."""
        return self._alive().pid

    @property
    def directory(self) -> Path:
        """Where it works, with its `server.log`. `ConfigError` where it has none: before `start` and after `stop`."""
        if self._directory is None:
            raise ConfigError(f"{self.name} has no directory before it is started")
        return self._directory

    def start(self) -> Self:
        """Start it and wait until it answers. Nothing happens if it runs. `ConfigError` shows the end of its log."""
        if self.running:
            return self
        self._refuse_a_taken_port()
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="cachebus-", dir=self._place()))
        try:
            self._prepare()
        except BaseException:
            self._remove_directory()
            raise
        deadline = monotonic() + self.START_TIMEOUT_S
        while True:
            self._process = process = spawn(
                self._command(), log=self.directory / "server.log", env=self._environment(), user=self._user()
            )
            self._end = weakref.finalize(self, end, process, None if self._given else self._directory)
            try:
                self._until_it_answers(process)
            except BaseException:
                if not self.running and self._was_too_early() and monotonic() < deadline:
                    continue
                self.stop()
                raise
            return self

    def stop(self) -> None:
        """End it, and remove its directory if that was its own. Nothing happens if it does not run."""
        if self._given is not None and self.running:
            self._terminate()  # the directory is the caller's: let the server write its data
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
        if sys.platform == "linux":  # the signal takes a moment: after this nothing further is answered
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._alive().send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """End it in order, if it runs, and start it again on the same port, with what its directory holds."""
        if self.running:
            self._terminate()
        self.start()

    def connected(self) -> socket.socket:
        """A new connection to it; `OSError`."""
        return socket.create_connection((HOST, self.port), ASK_TIMEOUT_S)

    def log_tail(self) -> str:
        """The last lines of its log, or "" where there is none."""
        try:
            text = (self.directory / "server.log").read_text(errors="replace")
        except (OSError, ConfigError):
            return ""
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    @abstractmethod
    def _command(self) -> list[str]:
        """What to run."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it serves clients now."""

    def _prepare(self) -> None:  # noqa: B027 -- most servers find all they need
        """Write the files that it needs into its directory."""

    def _was_too_early(self) -> bool:
        """Whether it ended because something of the server that was killed before still lives."""
        return False

    def _place(self) -> Path | None:
        """The folder in which a new directory is made; None: the system's default."""
        return None

    def _remove_directory(self) -> None:
        if self._given is None and self._process is None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _environment(self) -> Mapping[str, str] | None:
        return None

    def _user(self) -> int | None:
        return None

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ConfigError(f"{self.name} on port {self.port} does not run")
        return self._process

    def _terminate(self) -> None:
        process = self._alive()
        process.send_signal(self._quit_signal())
        process.send_signal(signal.SIGCONT)  # a paused one hears nothing before it goes on
        try:
            process.wait(self.START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _quit_signal(self) -> signal.Signals:
        return signal.SIGTERM

    def _refuse_a_taken_port(self) -> None:
        try:
            self.connected().close()
        except OSError:
            return
        # Otherwise the other server would answer in its place.
        raise ConfigError(f"port {self.port} of {HOST} is taken: give another, or none")

    def _until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = monotonic() + self.START_TIMEOUT_S
        while not self._answers():
            try:
                status = process.wait(POLL_S)  # rather than a sleep: returns at once when the process ends
            except subprocess.TimeoutExpired:
                if monotonic() < deadline:
                    continue
                what = f"does not answer after {self.START_TIMEOUT_S:g} s"
            else:
                what = f"ended with status {status}"
            raise ConfigError(f"{self.name} on port {self.port} {what}; its log ends:\n{self.log_tail()}")
