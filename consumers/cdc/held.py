"""What waits for a primary that is away, in a table beside what it came from: the slot goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cachebus.clock import monotonic, wall_s
from consumers.apply import Applier
from consumers.cdc.carry import Ask
from consumers.meters import Meters
from producers.command import encode

if TYPE_CHECKING:
    import asyncpg

TABLE: Final = """
CREATE TABLE IF NOT EXISTS cachebus_cdc_held (
  slot text NOT NULL, shard int NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, command text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (slot, shard, id))
"""
COUNT: Final = "SELECT shard, count(*) FROM cachebus_cdc_held WHERE slot = $1 GROUP BY shard"
PUT: Final = "INSERT INTO cachebus_cdc_held (slot, shard, command) SELECT $1, * FROM unnest($2::int[], $3::text[])"
TAKE: Final = """
SELECT id, command, extract(epoch FROM at)::float8 AS at_s FROM cachebus_cdc_held
WHERE slot = $1 AND shard = $2 ORDER BY id LIMIT $3
"""
LET_GO: Final = "DELETE FROM cachebus_cdc_held WHERE slot = $1 AND shard = $2 AND id = ANY ($3::bigint[])"
TRY_EVERY_S: Final = 1.0
AT_ONCE: Final = 500


class HeldCommands:
    """The table's rows for one slot. What is told again, after a crash, is held twice, and applied twice."""

    def __init__(
        self, connection: asyncpg.Connection, slot: str, busy: asyncio.Lock, applier: Applier, meters: Meters
    ) -> None:
        self._connection = connection
        self._slot = slot
        self._busy = busy
        self._applier = applier
        self._meters = meters
        self._next_s = float("-inf")
        self._counts = Counter[int]()
        """How many wait for which shard."""

    async def found(self) -> None:
        """Learn of those that another worker has held. Raises what the driver does, as all here."""
        async with self._busy:
            self._counts = Counter(dict(await self._connection.fetch(COUNT, self._slot)))

    @property
    def shards(self) -> set[int]:
        """Whose primaries they wait for."""
        return set(self._counts)

    async def put(self, asks: Sequence[Ask]) -> None:
        """Keep them: committed when this returns."""
        shards = [ask.plan.shard for ask in asks]
        async with self._busy:
            await self._connection.execute(PUT, self._slot, shards, [encode(ask.command).decode() for ask in asks])
        self._counts += Counter(shards)
        self._meters.held.set(self._counts.total())

    async def tried(self) -> None:
        """Apply what can be by now, some of it: all goes on in between. While nothing can be, once a second."""
        if not self._counts or monotonic() < self._next_s:
            return
        done = [await self._tried(shard) for shard in sorted(self._counts)]
        self._meters.held.set(self._counts.total())
        if not any(done):
            self._next_s = monotonic() + TRY_EVERY_S

    async def _tried(self, shard: int) -> bool:
        async with self._busy:
            rows = await self._connection.fetch(TAKE, self._slot, shard, AT_ONCE)
        plans = [self._applier.plan_of(row["command"]) for row in rows]
        away = await self._applier.apply_what_can_be(plans)
        done = [row for row, plan in zip(rows, plans, strict=True) if plan.shard not in away]
        async with self._busy:
            await self._connection.execute(LET_GO, self._slot, shard, [row["id"] for row in done])
        for row in done:
            self._meters.lag_s.observe(max(0.0, wall_s() - row["at_s"]))
        self._meters.done("applied", len(done))
        self._counts[shard] -= len(done)
        if not rows or self._counts[shard] <= 0:
            del self._counts[shard]
        return bool(done)
