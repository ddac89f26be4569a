"""A file of SQLite, and the thread in which it is used."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from cachebus.consumers.worker import clean
from cachebus.errors import ConfigError
from cachebus.producers.outbox.table import OutboxTable

BUSY_S: Final = 2.0
"""How long another connection's transaction is waited for before an error is raised."""
CLOSE_TIMEOUT_S: Final = 1.0
WHO_LOCKS: Final = (
    ": a transaction of another connection writes, and does not end; end it, or its process (`lsof FILE` tells who "
    "has the file open)"
)
TROUBLE: Final = (OSError, sqlite3.OperationalError, sqlite3.DatabaseError)
T = TypeVar("T")


def path_of(url: str) -> Path:
    """The file that a URL such as sqlite:///NAME or sqlite+pysqlite:////PATH names; `ConfigError`, which does not show
    it."""
    _, slashes, rest = url.partition(":///")
    name = rest.partition("?")[0]
    if not slashes or not name or name == ":memory:" or "\0" in name:
        raise ConfigError("the outbox's database must be a file, as in sqlite:///NAME.db or sqlite:////FOLDER/NAME.db")
    return Path(name)


class CheckedStatement(NamedTuple):
    """A statement that changes a row, and a query whether the row is there and unchanged."""

    sql: str
    left: str

    def of(self, table: OutboxTable) -> CheckedStatement:
        """The change for this table."""
        return CheckedStatement(self.sql.format(t=table), self.left.format(t=table))


class Database:
    """A file, and the thread in which it is used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "cachebus-sqlite")
        self._connection: sqlite3.Connection
        self._file: tuple[int, int]

    async def open(self, *, create: bool = False) -> None:
        """Open the file; raises one of `TROUBLE`."""
        await self.run(lambda: self._open("rwc" if create else "rw"))

    def _open(self, mode: str) -> None:
        uri = f"file:{quote(str(self._path))}?mode={mode}"
        self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection.text_factory = bytes  # whatever is in it: text is read where that can fail alone
        self._connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        self._file = self._seen()

    def _seen(self) -> tuple[int, int]:
        stat = self._path.stat()
        return stat.st_dev, stat.st_ino

    def is_there(self) -> bool:
        """Whether the file is still the one that was opened, and no other one has replaced it."""
        return self._seen() == self._file

    async def run(self, what: Callable[[], T]) -> T:
        """Run a function in the file's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    async def fetch(self, sql: str, *values: Any) -> list[Any]:
        """The rows that a query finds."""
        found: list[Any] = await self.run(lambda: self._connection.execute(sql, values).fetchall())
        return found

    async def whole(self, what: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a transaction."""
        return await self.run(lambda: self._whole(what))

    def _whole(self, what: Callable[[sqlite3.Connection], T]) -> T:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            done = what(self._connection)
            execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                execute("ROLLBACK")
            raise
        return done

    async def close(self) -> None:
        """Close the file."""
        if hasattr(self, "_connection"):
            self._connection.interrupt()
            with suppress(sqlite3.Error, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.run(self._connection.close)
        self._thread.shutdown(wait=False)


def changed(connection: sqlite3.Connection, sql: str, values: Sequence[Sequence[Any]]) -> int:
    """Execute a statement for each of the values; returns how many rows it changed, without what triggers did."""
    return max(0, connection.executemany(sql, values).rowcount) if values else 0


def kept(connection: sqlite3.Connection, change: CheckedStatement, values: Sequence[Sequence[Any]]) -> set[int]:
    """Execute a change for each of the values, of which the last is a row's id; returns the ids of rows that a trigger
    keeps as they were."""
    try:
        if changed(connection, change.sql, values) == len(values):
            return set()
    except sqlite3.IntegrityError:
        for one in values:
            try:
                connection.execute(change.sql, one)
            except sqlite3.IntegrityError:
                if not connection.in_transaction:  # the trigger has ended that as well
                    connection.execute("BEGIN IMMEDIATE")
    return {one[-1] for one in values if connection.execute(change.left, one).fetchone()}


@asynccontextmanager
async def opened(url: str, *, create: bool = False) -> AsyncIterator[Database]:
    """The file that the URL names, open; raises one of `TROUBLE`, or `ConfigError`."""
    database = Database(path_of(url))
    try:
        await database.open(create=create)
        yield database
    finally:
        await database.close()


def describe(error: BaseException) -> str:
    """The error in one line, without the file's name."""
    if getattr(error, "sqlite_errorname", "") == "SQLITE_CONSTRAINT_TRIGGER":
        return f"{type(error).__name__}: a trigger raises"  # the words are its author's, and may be a row's
    if isinstance(error, OSError):
        return clean.clean(f"{type(error).__name__}: {error.strerror}")
    remedy = WHO_LOCKS if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY") else ""
    return f"{clean.describe(error)}{remedy}"


def is_missing(error: BaseException) -> bool:
    """Whether a table is not there."""
    return isinstance(error, sqlite3.OperationalError) and str(error).startswith("no such table")
