"""What waits for a primary that is away, in a table beside what it came from: the slot goes on meanwhile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cachebus.base.clock import wall_s
from cachebus.consumers.cdc.slot.storage import HELD, Swallowed
from cachebus.consumers.worker.source import Item, Waiting
from cachebus.producers.command import Command, encode

if TYPE_CHECKING:
    import asyncpg

SHARDS: Final = f"SELECT DISTINCT shard FROM {HELD} WHERE slot = $1"
PUT: Final = f"""
INSERT INTO {HELD} (slot, digest, shards, shard, command, at)
SELECT $1, d, $2, s, c, to_timestamp(a) FROM unnest($3::text[], $4::int[], $5::text[], $6::float8[]) AS t (d, s, c, a)
ON CONFLICT (slot, digest) DO UPDATE SET id = DEFAULT, shards = excluded.shards, shard = excluded.shard,
  at = least({HELD}.at, excluded.at)
RETURNING digest
"""
TAKE: Final = f"""
SELECT id, command, extract(epoch FROM at)::float8 AS at_s FROM {HELD}
WHERE slot = $1 AND shard = $2 ORDER BY id LIMIT $3
"""
LET_GO: Final = f"DELETE FROM {HELD} WHERE slot = $1 AND shard = $2 AND id = ANY ($3::bigint[])"
LEFT: Final = f"SELECT true FROM {HELD} WHERE slot = $1 AND shard = $2 AND id = ANY ($3::bigint[]) LIMIT 1"
FIGURES: Final = f"""
SELECT count(*) AS held, extract(epoch FROM now() - min(at))::float8 AS oldest_s FROM {HELD} WHERE slot = $1
"""
ANYWHERE: Final = f"UPDATE {HELD} SET shard = -1 WHERE slot = $1 AND shards <> $2 AND shard <> -1"
"""With another number of shards they lie elsewhere: each is tried once, and then known to be for another."""
AT_ONCE: Final = 500


class HeldCommand(NamedTuple):
    """A row of the table."""

    id: int
    shard: int
    command: str


class HeldCommands:
    """The table's rows for one slot: each command once, however often it is asked for meanwhile."""

    def __init__(self, connection: asyncpg.Connection, slot: str, shards: int, shard_of: Callable[[Any], int]) -> None:
        self._connection = connection
        self._slot = slot
        self._of = shards
        self._shard_of = shard_of
        self.shards = list[int]()
        """Whose primaries some may wait for."""

    async def found(self) -> None:
        """Learn of those that another worker has held. Raises what the driver does, as all here."""
        await self._connection.execute(ANYWHERE, self._slot, self._of)
        self.shards = [row["shard"] for row in await self._connection.fetch(SHARDS, self._slot)]

    async def put(self, waiting: Sequence[Waiting]) -> None:
        """Keep them: committed when this returns; `Swallowed` where not all are."""
        rows: dict[str, tuple[int, str, float]] = {}
        for one in waiting:
            for command in one.commands:
                text = _text(command)
                digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
                rows[digest] = (self._shard_of(command), text, one.item.sent_s or wall_s())
        shards, texts, times = zip(*rows.values(), strict=True)
        kept = await self._connection.fetch(PUT, self._slot, self._of, list(rows), shards, texts, times)
        if {row["digest"] for row in kept} != rows.keys():
            raise Swallowed(HELD)
        self.shards += set(shards).difference(self.shards)

    async def take(self, limit: int, away: Collection[int]) -> list[Item]:
        """Some whose primary is not known to be away, all of one shard; no more than a few queries find them."""
        for _ in range(len(self.shards)):
            shard = self.shards.pop(0)  # one after the other: none waits for another's
            if shard in away:
                self.shards.append(shard)
                continue
            rows = await self._connection.fetch(TAKE, self._slot, shard, min(limit, AT_ONCE))
            if rows:
                self.shards.append(shard)
                return [
                    Item(f"held {one['id']}", HeldCommand(one["id"], shard, one["command"]), one["at_s"])
                    for one in rows
                ]
        return []

    async def let_go(self, items: Sequence[Item]) -> None:
        """These are done with. One that was asked for again meanwhile has another number, and stays."""
        if items:
            ids = [item.raw.id for item in items]
            of = self._slot, items[0].raw.shard, ids
            status = await self._connection.execute(LET_GO, *of)
            # Some may have another number by now; where all have gone there is nothing to ask for.
            if status != f"DELETE {len(ids)}" and await self._connection.fetchval(LEFT, *of):
                raise Swallowed(HELD)

    async def figures(self) -> tuple[int, float]:
        """How many there are, and for how long the oldest has waited."""
        row = await self._connection.fetchrow(FIGURES, self._slot)
        return row["held"], row["oldest_s"] or 0.0


def trial(slot: str) -> list[tuple[str, Any]]:
    """What is written and removed there, for nothing."""
    put = PUT, (slot, 1, ["trial"], [-1], [""], [0.0])
    return [put, put, (f"DELETE FROM {HELD} WHERE slot = $1 AND digest = 'trial'", (slot,))]


def _text(command: Command | bytes | str) -> str:
    """JSON that every database takes, whatever its encoding."""
    if isinstance(command, str):
        return command
    text = (command if isinstance(command, bytes) else encode(command)).decode()
    return text if text.isascii() else json.dumps(json.loads(text))
