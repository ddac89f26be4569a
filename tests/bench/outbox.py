"""The outbox's relay beside a bare loop that only takes rows and removes them: rows a second, and commit -> applied."""

from __future__ import annotations

from contextlib import AsyncExitStack
from statistics import median
from typing import Any, Final

import asyncpg

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from cachebus.consumers.outbox import create_tables
from cachebus.tools.servers.postgres import PostgresServer
from tests.bench.children import Talk, talking
from tests.bench.other_node import Arrivals
from tests.bench.rounds import p99
from tests.bench.rows import Row, at_least, at_most
from tests.bench.run import Bench

NODES: Final = 3
BLOCK: Final = 20
"""Writes of one kind in a row."""
TABLES: Final = {"ours": "cachebus_outbox", "bare": "bare_outbox"}
MANY: Final = """\
INSERT INTO {table} (command) SELECT json_build_object('op', 'invalidate', 'tenant_id', 'acme', 'data_type', 'config',
    'resource_id', 'agent-' || n) FROM generate_series(1, $1) AS n"""
ONE: Final = """\
INSERT INTO {table} (command)
VALUES ('{{"op": "invalidate", "tenant_id": "acme", "data_type": "config", "resource_id": "a7"}}')"""


async def rows(bench: Bench) -> list[Row]:
    """Both, with a database that writes nothing through to the disk, which would be its time and nobody's else."""
    with PostgresServer() as postgres:
        for table in TABLES.values():
            await create_tables(postgres.url, table)
        async with AsyncExitStack() as stack:
            writer = await asyncpg.connect(postgres.url)
            stack.push_async_callback(writer.close)
            other = await stack.enter_async_context(talking("tests.bench.outbox_other", postgres.url, bench.server.url))
            measured = Measured(bench, writer, other)
            return [*await measured.lag(), await measured.throughput()]


class Measured:
    """One writer here, relay and bare loop in the other process, and nodes here."""

    def __init__(self, bench: Bench, writer: asyncpg.Connection, other: Talk) -> None:
        self._bench, self._writer, self._other = bench, writer, other
        self._written = dict.fromkeys(TABLES, 0)

    async def _done(self, who: str) -> tuple[float, list[float]]:
        """When all that was written for one of them was done with."""
        at_s, times = await self._other.ask(who=who, rows=self._written[who])
        return at_s, times

    async def throughput(self) -> Row:
        """Many rows of one commit, until they are gone."""
        count = self._bench.scale.flood
        rates: dict[str, list[float]] = {who: [] for who in TABLES}
        for turn in range(max(2, self._bench.scale.flood_rounds)):
            for who, table in TABLES.items():
                await self._writer.execute(MANY.format(table=table), count)
                self._written[who] += count
                started_s = monotonic()
                rates[who].append(count / ((await self._done(who))[0] - started_s))
                await self._writer.execute(f"VACUUM {table}")
            self._bench.progress.step(f"flood {turn + 1}")
        ours, bare = median(rates["ours"]), median(rates["bare"])
        return Row(
            "outbox.rows",
            "outbox: rows a second that a relay applies, beside a bare SKIP LOCKED and DELETE loop",
            ours / bare,
            "x",
            at_least(0.25),
            {"bare loop": 1.0},
            f"{ours:,.0f} rows/s beside {bare:,.0f}",
        )

    async def lag(self) -> list[Row]:
        """One row a commit: until every node has applied it; and until the bare loop has removed it."""
        ours: list[float] = []
        bare: list[float] = []
        async with AsyncExitStack() as stack:
            heard = [await self._node(stack) for _ in range(NODES)]
            for first in range(0, self._bench.scale.messages // 2 + BLOCK, BLOCK):
                ours += [await self._one_of_ours(heard) for _ in range(BLOCK)]
                bare += [await self._one_of_theirs() for _ in range(BLOCK)]
                self._bench.progress.step(f"write {first}")
        return [
            self._lag("outbox.lag_p50", "p50", median(ours[BLOCK:]), median(bare[BLOCK:])),  # the first warm all up
            self._lag("outbox.lag_p99", "p99", p99(ours[BLOCK:]), p99(bare[BLOCK:])),
        ]

    async def _node(self, stack: AsyncExitStack) -> tuple[Cache, Arrivals]:
        cache = await stack.enter_async_context(Cache.open(Settings(url=self._bench.server.url)))
        arrivals = Arrivals()
        cache.on_applied = lambda shard, epoch, seq, at_s: arrivals.arrived(seq, at_s)
        return cache, arrivals

    async def _one_of_ours(self, heard: list[tuple[Cache, Arrivals]]) -> float:
        """Seconds from sending the COMMIT to when the last node has applied the row's event."""
        seq = heard[0][0].stats().shards[0].applied + 1
        started_s = await self._commit("ours")
        return max([(await arrivals.until(seq))[seq] for _, arrivals in heard]) - started_s

    async def _one_of_theirs(self) -> float:
        """Seconds from sending the COMMIT to when the bare loop has committed the row's removal."""
        started_s = await self._commit("bare")
        (gone_s,) = (await self._done("bare"))[1]
        return gone_s - started_s

    async def _commit(self, who: str) -> float:
        transaction: Any = self._writer.transaction()
        await transaction.start()
        await self._writer.execute(ONE.format(table=TABLES[who]))
        started_s = monotonic()
        await transaction.commit()
        self._written[who] += 1
        return started_s

    def _lag(self, name: str, which: str, ours_s: float, bare_s: float) -> Row:
        return Row(
            name,
            f"outbox: commit -> applied on {NODES} nodes, {which}: share of commit -> removed by the bare loop",
            ours_s / bare_s,
            "x",
            at_most(2.5),
            {"bare loop": 1.0},
            f"{ours_s * 1e3:.2f} ms beside {bare_s * 1e3:.2f}",
        )
