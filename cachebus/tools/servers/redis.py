"""A real Redis or Valkey server without installing one: for tests, the demo and a first try on a laptop.

A server listens on 127.0.0.1 alone, keeps nothing on disk unless asked to, and ends with the process that started it,
however that process ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from cachebus.tools.servers.daemon import HOST, Daemon, free_port
from cachebus.tools.servers.redis_binaries import MISSING, Origin, ServerBinary, best_server, find_servers

__all__ = [
    "HOST",
    "MISSING",
    "EmbeddedServer",
    "Origin",
    "ServerBinary",
    "best_server",
    "find_servers",
    "free_port",
    "instead_of",
]


class EmbeddedServer(Daemon):
    """One server process on 127.0.0.1; a context manager that starts and stops it. It also ends with this object.

    Calls block for some milliseconds: from a coroutine that must not wait, use `asyncio.to_thread`.

    `binary`: the program, by default `best_server()`. `port`: by default a free one, kept over restarts. `directory`:
    its working directory, by default a new one, which `stop` removes; a given one stays. `password`: required of every
    client. `appendonly`: keep every write, so that data outlives `kill` and `restart`. `extra`: more arguments for the
    server, such as `("--maxmemory", "1mb")`. `conf`: more lines of its configuration file.
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
        super().__init__(port=port, directory=directory)
        self.binary = binary or best_server()
        self.name = self.binary.name
        self.password = password
        self.appendonly = appendonly
        """Whether it keeps every write, from its next start on."""
        self._extra = tuple(extra)
        self._conf = tuple(conf)

    @property
    def url(self) -> str:
        """Its address: "redis://127.0.0.1:11042/0", with the password where there is one."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}{HOST}:{self.port}/0"

    def command(self, *args: str) -> str:
        """Send one command over a connection of its own; gives the reply's first line, such as "+OK" or ":3".

        For set-up and inspection. `OSError` where it cannot be reached or does not answer in 2 s.
        """
        with self.connected() as connection, connection.makefile("rb") as said:
            if self.password:
                connection.sendall(_packed("AUTH", self.password))
                said.readline()
            connection.sendall(_packed(*args))
            return said.readline().decode().rstrip("\r\n")

    def _command(self) -> list[str]:
        return [str(self.binary.path), str(self._write_conf()), *self._extra]

    def _write_conf(self) -> Path:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.directory),
            "appendonly": "yes" if self.appendonly else "no",
            "save": "",
            "requirepass": self.password or "",
        }
        conf = self.directory / "server.conf"
        conf.touch(mode=0o600)  # a file and not arguments, so that `ps` does not show the password
        lines = [*(f"{name} {_quoted(value)}" for name, value in settings.items()), *self._conf]
        conf.write_text("".join(f"{line}\n" for line in lines))
        return conf

    def _answers(self) -> bool:
        try:
            return self.command("PING") == "+PONG"  # while it loads its data it answers -LOADING
        except OSError:
            return False


@contextmanager
def instead_of(gone: EmbeddedServer, *conf: str) -> Iterator[EmbeddedServer]:
    """An empty server at the address of one, which is killed, and does not come back by itself. `conf`: lines of its
    configuration file."""
    gone.kill()
    server = EmbeddedServer(gone.binary, port=gone.port, conf=conf)
    try:
        yield server.start()
    finally:
        server.stop()


def _packed(*args: str) -> bytes:
    parts = [arg.encode() for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
