"""What waits for a primary that is away, in a table beside what it came from: the slot goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from cachebus.clock import wall_s
from consumers.source import Item, Waiting
from producers.command import encode

if TYPE_CHECKING:
    import asyncpg

TABLE: Final = """
CREATE TABLE IF NOT EXISTS cachebus_cdc_held (
  slot text NOT NULL, shard int NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, command text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (slot, shard, id))
"""
COUNT: Final = """
SELECT shard, count(*) AS count, extract(epoch FROM min(at))::float8 AS at_s
FROM cachebus_cdc_held WHERE slot = $1 GROUP BY shard
"""
PUT: Final = """
INSERT INTO cachebus_cdc_held (slot, shard, command, at)
SELECT $1, shard, command, coalesce(to_timestamp(at_s), now())
FROM unnest($2::int[], $3::text[], $4::float8[]) AS held (shard, command, at_s)
"""
TAKE: Final = """
SELECT id, shard, command, extract(epoch FROM at)::float8 AS at_s FROM cachebus_cdc_held
WHERE slot = $1 AND shard = $2 ORDER BY id LIMIT $3
"""
LET_GO: Final = "DELETE FROM cachebus_cdc_held WHERE slot = $1 AND shard = $2 AND id = $3"


class HeldCommands:
    """The table's rows for one slot. What is told again, after a crash, is held twice, and applied twice."""

    def __init__(self, connection: asyncpg.Connection, slot: str, busy: asyncio.Lock) -> None:
        self._connection = connection
        self._slot = slot
        self._busy = busy
        self._counts = Counter[int]()
        """How many wait for which shard, as far as this session knows."""

    async def found(self) -> None:
        """Learn of those that others have held. Raises what the driver does, as all here."""
        async with self._busy:
            rows = await self._connection.fetch(COUNT, self._slot)
        self._counts = Counter({row["shard"]: row["count"] for row in rows})

    async def waits(self) -> tuple[int, float | None]:
        """How many wait, and for how long the oldest has."""
        async with self._busy:
            rows = await self._connection.fetch(COUNT, self._slot)
        oldest_s = min((row["at_s"] for row in rows), default=None)
        return sum(row["count"] for row in rows), oldest_s and max(0.0, wall_s() - oldest_s)

    async def put(self, waiting: Sequence[Waiting]) -> None:
        """Keep what of these waits: committed when this returns."""
        shards, commands, times = list[int](), list[str](), list[float | None]()
        for one in waiting:
            for command, shard in zip(one.commands, one.of, strict=True):
                shards.append(shard)
                commands.append(command if isinstance(command, str) else _text(command))
                times.append(one.item.sent_s)
        async with self._busy:
            await self._connection.execute(PUT, self._slot, shards, commands, times)
        self._counts += Counter(shards)

    async def take(self, limit: int, away: Collection[int]) -> list[Item]:
        """Some that need not wait any more: of one shard, the oldest."""
        for shard in sorted(self._counts.keys() - set(away)):
            async with self._busy:
                rows = await self._connection.fetch(TAKE, self._slot, shard, limit)
            self._counts[shard] = max(self._counts[shard], len(rows)) if rows else 0
            self._counts += Counter()
            if rows:
                return [Item(f"held {row['id']}", row, row["at_s"]) for row in rows]
        return []

    async def let_go(self, items: Sequence[Item], still: Sequence[Waiting]) -> None:
        """These were taken, and are done with, but for those that wait still: of those the shard may be another one by
        now, where caches have another number of shards than before."""
        moved = [one for one in still if one.of[0] != one.item.raw["shard"]]
        if moved:
            await self.put(moved)
        kept = {id(one.item) for one in still}.difference(id(one.item) for one in moved)
        rows: list[Any] = [item.raw for item in items if id(item) not in kept]
        async with self._busy:
            await self._connection.executemany(LET_GO, [(self._slot, row["shard"], row["id"]) for row in rows])
        self._counts -= Counter(row["shard"] for row in rows)


def _text(command: Any) -> str:
    return command.decode() if isinstance(command, bytes) else encode(command).decode()
