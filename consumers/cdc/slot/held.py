"""What waits for a primary that is away, or could not be set aside, in a table beside what it came from: the slot goes
on meanwhile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.cdc.slot.storage import HELD
from cachebus.consumers.worker.dead import DeadLetter
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
"""
TAKE: Final = f"""
SELECT id, command, extract(epoch FROM at)::float8 AS at_s FROM {HELD}
WHERE slot = $1 AND shard = $2 ORDER BY id LIMIT $3
"""
LET_GO: Final = f"DELETE FROM {HELD} WHERE slot = $1 AND shard = $2 AND id = ANY ($3::bigint[])"
FIGURES: Final = f"""
SELECT count(*) AS held, extract(epoch FROM now() - min(at))::float8 AS oldest_s FROM {HELD}
WHERE slot = $1 AND shard >= -1
"""
ANYWHERE: Final = f"UPDATE {HELD} SET shard = -1 WHERE slot = $1 AND shards <> $2 AND shard >= 0"
"""With another number of shards they lie elsewhere: each is tried once, and then known to be for another."""
AT_ONCE: Final = 500
LETTERS: Final = -2
"""In the place of a shard: dead letters that the table of the dead did not take."""
AGAIN_S: Final = 10.0
"""So long they rest."""


class HeldCommand(NamedTuple):
    """A row of the table."""

    id: int
    shard: int
    command: str


class HeldLetter(NamedTuple):
    """Likewise."""

    id: int
    letter: DeadLetter
    shard: int = LETTERS


class HeldCommands:
    """The table's rows for one slot: each command once, however often it is asked for meanwhile."""

    def __init__(self, connection: asyncpg.Connection, slot: str, shards: int, shard_of: Callable[[Any], int]) -> None:
        self._connection = connection
        self._slot = slot
        self._of = shards
        self._shard_of = shard_of
        self.shards = list[int]()
        """Whose primaries some may wait for."""
        self._letters_from_s = float("-inf")

    async def found(self) -> None:
        """Learn of those that another worker has held. Raises what the driver does, as all here."""
        await self._connection.execute(ANYWHERE, self._slot, self._of)
        self.shards = [row["shard"] for row in await self._connection.fetch(SHARDS, self._slot)]

    async def put(self, waiting: Sequence[Waiting]) -> None:
        """Keep them: committed when this returns."""
        rows: dict[str, tuple[int, str, float]] = {}
        for one in waiting:
            for command in one.commands:
                text = _text(command)
                digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
                rows[digest] = (self._shard_of(command), text, one.item.sent_s or wall_s())
        shards, texts, times = zip(*rows.values(), strict=True)
        await self._connection.execute(PUT, self._slot, self._of, list(rows), shards, texts, times)
        self.shards += set(shards).difference(self.shards)

    async def put_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them, as `put` does, until the table of the dead takes them."""
        texts = list(dict.fromkeys(map(_of_letter, letters)))
        digests = [hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() for text in texts]
        count = len(texts)
        await self._connection.execute(PUT, self._slot, self._of, digests, [LETTERS] * count, texts, [wall_s()] * count)
        self.shards += {LETTERS}.difference(self.shards)
        self._letters_from_s = monotonic() + AGAIN_S

    async def take(self, limit: int, away: Collection[int]) -> list[Item]:
        """Some whose primary is not known to be away, all of one shard; no more than a few queries find them."""
        for _ in range(len(self.shards)):
            shard = self.shards.pop(0)  # one after the other: none waits for another's
            if shard in away or (shard == LETTERS and monotonic() < self._letters_from_s):
                self.shards.append(shard)
                continue
            rows = await self._connection.fetch(TAKE, self._slot, shard, min(limit, AT_ONCE))
            if rows:
                self.shards.append(shard)
                if shard == LETTERS:
                    self._letters_from_s = monotonic() + AGAIN_S
                    return [_letter_of(one) for one in rows]
                return [
                    Item(f"held {one['id']}", HeldCommand(one["id"], shard, one["command"]), one["at_s"])
                    for one in rows
                ]
        return []

    async def let_go(self, items: Sequence[Item]) -> None:
        """These are done with. One that was asked for again meanwhile has another number, and stays."""
        if items:
            ids = [item.raw.id for item in items]
            await self._connection.execute(LET_GO, self._slot, items[0].raw.shard, ids)

    async def figures(self) -> tuple[int, float]:
        """How many there are, and for how long the oldest has waited."""
        row = await self._connection.fetchrow(FIGURES, self._slot)
        return row["held"], row["oldest_s"] or 0.0


def _of_letter(letter: DeadLetter) -> str:
    payload = letter.payload.decode("utf-8", "backslashreplace").replace("\0", "\\0")  # as it would be set aside
    return json.dumps([payload, letter.reason, letter.source, letter.attempts])


def _letter_of(row: Any) -> Item:
    payload, reason, source, attempts = json.loads(row["command"])
    return Item(source, HeldLetter(row["id"], DeadLetter(payload.encode(), reason, source, attempts)), row["at_s"])


def _text(command: Command | bytes | str) -> str:
    """JSON that every database takes, whatever its encoding."""
    if isinstance(command, str):
        return command
    text = (command if isinstance(command, bytes) else encode(command)).decode()
    return text if text.isascii() else json.dumps(json.loads(text))
