"""The catalogue in PostgreSQL. A write notifies the caches by a row in its own transaction (outbox), or by the
database's log (change data capture)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from cachebus.base.clock import Clock
from cachebus.producers.outbox import Outbox, OutboxProducer
from cachebus.settings import Settings
from cachebus.tools.demo.catalogue import CatalogueItem, Written
from cachebus.tools.demo.subjects import TENANT
from cachebus.tools.demo.trace import name_of
from cachebus.tools.harness.messages import Job

CONNECTIONS: Final = 8
TABLE: Final = "item"
_CREATE: Final = """
CREATE TABLE {} (
    resource_id TEXT PRIMARY KEY, version INTEGER NOT NULL, title TEXT NOT NULL, price_cents INTEGER NOT NULL
)
"""
_READ: Final = "SELECT version, title, price_cents FROM {} WHERE resource_id = $1"
_WRITE: Final = (
    "UPDATE {} SET version = version + 1, price_cents = price_cents + 1 WHERE resource_id = $1 RETURNING version"
)


def rules(words: Collection[int]) -> str:
    """The rules file of the cdc worker."""
    return "\n".join(
        f'[[rule]]\ntable = "public.{TABLE}_{data_type}"\ndata_type = "{data_type}"\n'
        f'resource_id = "{{resource_id}}"\ntenant_id = "{TENANT}"\n'
        for data_type in _types(words)
    )


def _types(words: Collection[int]) -> list[str]:
    return sorted({name_of(word)[0] for word in words})


async def create(url: str, words: Collection[int]) -> None:
    """Create a table for each type, with a row for every word, in version 1."""
    rows: dict[str, list[tuple[str, int, str, int]]] = {}
    for word in words:
        data_type, resource_id = name_of(word)
        rows.setdefault(data_type, []).append((resource_id, 1, f"Item {word & 0x7FFFFFF}", 99 + word % 9_900))
    connection = await asyncpg.connect(url)
    try:
        for data_type, some in rows.items():
            await connection.execute(_CREATE.format(f"{TABLE}_{data_type}"))
            await connection.copy_records_to_table(f"{TABLE}_{data_type}", records=some)
    finally:
        await connection.close()


class PostgresShop:
    """A `Shop` over a pool of connections."""

    def __init__(self, pool: asyncpg.Pool, outbox: Outbox | None, clock: Clock, *, notifies: bool) -> None:
        self._pool = pool
        self._outbox = outbox
        self._clock = clock
        self.notifies = notifies

    async def read(self, word: int) -> CatalogueItem:
        """The row as it is committed now; `LookupError` where there is none."""
        data_type, resource_id = name_of(word)
        row = await self._pool.fetchrow(_READ.format(f"{TABLE}_{data_type}"), resource_id)
        if row is None:
            raise LookupError(f"no row {word}")
        return {"word": word, "version": row[0], "title": row[1], "price_cents": row[2]}

    async def write(self, word: int) -> Written:
        """Change the row's price and commit; with an outbox, the same transaction writes the invalidation."""
        data_type, resource_id = name_of(word)
        async with self._pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                version = await connection.fetchval(_WRITE.format(f"{TABLE}_{data_type}"), resource_id)
                if version is None:
                    raise LookupError(f"no row {word}")
                if self._outbox is not None:
                    await OutboxProducer(connection, self._outbox).invalidate(data_type, resource_id, TENANT)
            except BaseException:
                await transaction.rollback()
                raise
            committing_s = self._clock()
            await transaction.commit()
            return Written(version, committing_s, self._clock())


@asynccontextmanager
async def open_shop(job: Job, clock: Clock) -> AsyncIterator[PostgresShop]:
    """The shop of a job that has a database."""
    outbox = None
    if job.writes == "outbox" and job.url is not None:
        outbox = Outbox(Settings(url=job.url, namespace=job.namespace))
    pool = await asyncpg.create_pool(job.database, min_size=CONNECTIONS, max_size=CONNECTIONS)
    try:
        yield PostgresShop(pool, outbox, clock, notifies=job.writes != "direct")
    finally:
        await pool.close()
