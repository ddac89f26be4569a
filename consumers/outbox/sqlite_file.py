"""A file of SQLite's, and the thread in which it is used."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from cachebus.consumers.worker import clean
from cachebus.errors import ConfigError

BUSY_S: Final = 2.0
"""How long another one's transaction is waited for, before it is told."""
CLOSE_TIMEOUT_S: Final = 1.0
TROUBLE: Final = (OSError, sqlite3.OperationalError, sqlite3.DatabaseError)
T = TypeVar("T")


def path_of(url: str) -> Path:
    """The file that a URL like sqlite:///NAME or sqlite+pysqlite:////PATH names; `ConfigError`, which does not show
    it."""
    _, slashes, rest = url.partition(":///")
    name = rest.partition("?")[0]
    if not slashes or not name or name == ":memory:" or "\0" in name:
        raise ConfigError("the outbox's database must be a file, as in sqlite:///NAME.db or sqlite:////FOLDER/NAME.db")
    return Path(name)


class Database:
    """A file, and the thread in which it is used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "cachebus-sqlite")
        self._connection: sqlite3.Connection
        self._file: tuple[int, int]

    async def open(self, *, create: bool = False) -> None:
        """Use it; one of `TROUBLE`."""
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
        """Whether the file is the one that was opened, and not another in its place."""
        return self._seen() == self._file

    async def run(self, what: Callable[[], T]) -> T:
        """Do it in the file's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    async def fetch(self, sql: str, *values: Any) -> list[Any]:
        """What a query finds."""
        found: list[Any] = await self.run(lambda: self._connection.execute(sql, values).fetchall())
        return found

    async def change(self, *statements: tuple[str, Iterable[Sequence[Any]]]) -> int:
        """All of these, each for several values, or none of them; how many rows were changed."""
        return await self.run(lambda: self._change(statements))

    def _change(self, statements: Iterable[tuple[str, Iterable[Sequence[Any]]]]) -> int:
        execute, before = self._connection.execute, self._connection.total_changes
        execute("BEGIN IMMEDIATE")
        try:
            for sql, values in statements:
                self._connection.executemany(sql, values)
            execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                execute("ROLLBACK")
            raise
        return self._connection.total_changes - before

    async def close(self) -> None:
        """Have done with it."""
        if hasattr(self, "_connection"):
            self._connection.interrupt()
            with suppress(sqlite3.Error, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.run(self._connection.close)
        self._thread.shutdown(wait=False)


@asynccontextmanager
async def opened(url: str, *, create: bool = False) -> AsyncIterator[Database]:
    """The file that the URL names; one of `TROUBLE`, `ConfigError`."""
    database = Database(path_of(url))
    try:
        await database.open(create=create)
        yield database
    finally:
        await database.close()


def describe(error: BaseException) -> str:
    """What went wrong in a line, without the file's name."""
    if isinstance(error, OSError):
        return clean.clean(f"{type(error).__name__}: {error.strerror}")
    return clean.describe(error)
