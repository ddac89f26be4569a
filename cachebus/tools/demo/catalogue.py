"""The source behind the cache, in a SQLite file: a table whose rows have versions, so that every answer can be
dated."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from cachebus.base.clock import Clock

FILE: Final = "catalogue.db"
BUSY_S: Final = 5.0
_CREATE: Final = """
CREATE TABLE item (
    word INTEGER PRIMARY KEY, version INTEGER NOT NULL, title TEXT NOT NULL, price_cents INTEGER NOT NULL
)
"""

CatalogueItem = dict[str, Any]
"""A row: `word`, `version` (1 when made, one more with every write), `title`, `price_cents`."""


def create(path: Path, words: Iterable[int]) -> None:
    """Make the file, with a row for every word in its version 1."""
    connection = _connected(path)
    try:
        connection.execute("PRAGMA journal_mode=WAL")  # so that readers never wait for a writer
        connection.execute(_CREATE)
        connection.execute("BEGIN")
        rows = ((word, f"Item {word & 0x7FFFFFF}", 99 + word % 9_900) for word in words)
        connection.executemany("INSERT INTO item VALUES (?, 1, ?, ?)", rows)
        connection.execute("COMMIT")
    finally:
        connection.close()


class Catalogue:
    """One connection to the file; a context manager. May be used from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = _connected(path)

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Use it no more."""
        self._connection.close()

    def read(self, word: int) -> CatalogueItem:
        """The row as it is committed now; `LookupError` where there is none."""
        row = self._connection.execute(
            "SELECT version, title, price_cents FROM item WHERE word = ?", (word,)
        ).fetchone()
        if row is None:
            raise LookupError(f"no row {word}")
        return {"word": word, "version": row[0], "title": row[1], "price_cents": row[2]}

    def write(self, word: int) -> int:
        """Change the row's price and commit; gives its new version. `LookupError` where there is none."""
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            run("UPDATE item SET version = version + 1, price_cents = price_cents + 1 WHERE word = ?", (word,))
            version = run("SELECT version FROM item WHERE word = ?", (word,)).fetchone()
            run("COMMIT")
        except BaseException:
            run("ROLLBACK")
            raise
        if version is None:
            raise LookupError(f"no row {word}")
        return int(version[0])


class Written(NamedTuple):
    """A write that is committed: the row's new version, and when its commit was asked for and had returned."""

    version: int
    committing_s: float
    committed_s: float


class Shop(Protocol):
    """The table as a service uses it."""

    notifies: bool
    """Whether a write notifies the caches by itself, by a row or the database's log; else its writer does."""

    async def read(self, word: int) -> CatalogueItem:
        """The row as it is committed now; `LookupError` where there is none."""
        ...

    async def write(self, word: int) -> Written:
        """Change the row and commit; `LookupError` where there is none."""
        ...


class SqliteShop:
    """A `Shop` over the file; a context manager."""

    notifies = False

    def __init__(self, path: Path, clock: Clock) -> None:
        # Two connections: reads run on the event loop, writes in a thread. SQLite lets in one writer at a time, and to
        # wait for that must not hold up the event loop.
        self._reads, self._writes = Catalogue(path), Catalogue(path)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="catalogue")
        self._clock = clock

    def __enter__(self) -> SqliteShop:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()
        for catalogue in (self._reads, self._writes):
            catalogue.close()

    async def read(self, word: int) -> CatalogueItem:
        """The row as it is committed now."""
        return self._reads.read(word)

    async def write(self, word: int) -> Written:
        """Change the row and commit."""
        committing_s = self._clock()
        version = await asyncio.get_running_loop().run_in_executor(self._writer, self._writes.write, word)
        return Written(version, committing_s, self._clock())


class SlowSource:
    """The source as a cache sees it. A load takes a while: half of it before the row is read, half after."""

    def __init__(self, shop: Shop, latency_s: float) -> None:
        self._shop = shop
        self._half_s = latency_s / 2
        self.loads = 0

    async def load(self, word: int) -> CatalogueItem:
        """The row, as it was in the middle of the call."""
        self.loads += 1
        await asyncio.sleep(self._half_s)
        item = await self._shop.read(word)
        await asyncio.sleep(self._half_s)
        return item


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    # The file is deleted after the run: nothing needs to reach the disk.
    connection.execute("PRAGMA synchronous=OFF")
    return connection
