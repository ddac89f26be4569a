"""Commands that wait for a primary that is away, and letters that could not be set aside, in a table in the same
database. So the slot advances meanwhile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.cdc.slot import locks
from cachebus.consumers.cdc.slot.storage import HELD, SLOTS, Swallowed, change
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import Item, WaitingItem
from cachebus.producers.command import Command, encode

if TYPE_CHECKING:
    import asyncpg

SHARDS: Final = f"SELECT DISTINCT shard FROM {HELD} WHERE slot = $1"
SUM: Final = "coalesce(sum(hashtext(digest)::int8), 0)::int8"
"""SQL: what rows are told by from all others, so that as many others in their place are noticed. 0 for none."""
# The sum of the rows that there must be is kept in the same transaction, in the row of the slot.
PUT: Final = f"""
WITH kept AS (
  INSERT INTO {HELD} (slot, digest, shards, shard, command, at)
  SELECT $1, d, $2, s, c, to_timestamp(a) FROM unnest($3::text[], $4::int[], $5::text[], $6::float8[]) AS t (d, s, c, a)
  ON CONFLICT (slot, digest) DO UPDATE SET id = DEFAULT, shards = excluded.shards, shard = excluded.shard,
    at = least({HELD}.at, excluded.at)
  RETURNING digest, xmax = 0 AS is_new
), counted AS (
  UPDATE {SLOTS} SET held = held + (SELECT {SUM} FROM kept WHERE is_new) WHERE slot = $1
) SELECT digest FROM kept
"""
TAKE: Final = f"""
SELECT id, command, extract(epoch FROM at)::float8 AS at_s FROM {HELD}
WHERE slot = $1 AND shard = $2 ORDER BY id LIMIT $3
"""
LET_GO: Final = f"""
WITH gone AS (
  DELETE FROM {HELD} WHERE slot = $1 AND shard = $2 AND id = ANY ($3::bigint[]) RETURNING digest
), counted AS (
  UPDATE {SLOTS} SET held = held - (SELECT {SUM} FROM gone) WHERE slot = $1
) SELECT count(*) FROM gone
"""
LEFT: Final = f"SELECT true FROM {HELD} WHERE slot = $1 AND shard = $2 AND id = ANY ($3::bigint[]) LIMIT 1"
FIGURES: Final = f"""
SELECT count(*) FILTER (WHERE shard >= -1) AS held,
       extract(epoch FROM now() - min(at) FILTER (WHERE shard >= -1))::float8 AS oldest_s,
       (SELECT held FROM {SLOTS} WHERE slot = $1) - {SUM} AS missing
FROM {HELD} WHERE slot = $1
"""
FORGIVE: Final = f"UPDATE {SLOTS} SET held = held - $2 WHERE slot = $1"
ANYWHERE: Final = f"UPDATE {HELD} SET shard = -1 WHERE slot = $1 AND shards <> $2 AND shard >= 0"
"""Stands for an unknown shard, after the number of shards has changed: each command is tried once to learn its
shard."""
AT_ONCE: Final = 500
LETTERS: Final = -2
"""Stands in place of a shard for dead letters that the table of dead letters did not take."""
AGAIN_S: Final = 10.0
"""How long these letters rest."""


class HeldCommand(NamedTuple):
    """A command in the table."""

    id: int
    shard: int
    command: str


class HeldLetter(NamedTuple):
    """A dead letter in the table."""

    id: int
    letter: DeadLetter
    shard: int = LETTERS


class HeldFigures(NamedTuple):
    """What is held of a slot."""

    rows: int = 0
    oldest_s: float = 0.0
    missing: int = 0
    """What tells the rows that others have removed, with the table or without it, or have put there; 0 for none."""


class HeldCommands:
    """The table's rows for one slot. Each command is kept once, however often it is asked for."""

    def __init__(self, connection: asyncpg.Connection, slot: str, shards: int, shard_of: Callable[[Any], int]) -> None:
        self._connection = connection
        self._slot = slot
        self._of = shards
        self._shard_of = shard_of
        self.shards = list[int]()
        """Whose primaries some may wait for."""
        self._is_known = False
        self.refusals = table_locks.LockRefusals()
        """What was given up, since the table was locked."""
        self._letters_from_s = self._from_s = float("-inf")

    async def found(self) -> None:
        """Learn anew which rows there are, as another worker may have written them; later, while the table is locked.
        All methods raise the driver's errors."""
        self._is_known = False
        try:
            await self._find()
        except locks.LOCKED:
            self.locked("find")

    @property
    def is_due(self) -> bool:
        """Whether there may be something to take."""
        return (bool(self.shards) or not self._is_known) and monotonic() >= self._from_s

    def locked(self, what: str) -> None:
        """Somebody has locked the table, rows in it, or the row of the slot: nothing is taken for a while."""
        self.refusals.refused(what)
        self.rest()

    def rest(self) -> None:
        """Nothing is taken for a while."""
        self._from_s = monotonic() + table_locks.REST_S

    async def _find(self) -> None:
        await self._connection.execute(ANYWHERE, self._slot, self._of)
        found = [row["shard"] for row in await self._connection.fetch(SHARDS, self._slot)]
        self.shards += [shard for shard in found if shard not in self.shards]
        self._is_known = True
        self.refusals.passed("find")

    async def put(self, waiting: Sequence[WaitingItem]) -> None:
        """Keep these: they are committed when this returns. `Swallowed` if not all are kept."""
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

    async def put_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Keep these letters, as `put` does, until the table of dead letters takes them."""
        texts = list(dict.fromkeys(map(_of_letter, letters)))
        digests = [hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() for text in texts]
        count = len(texts)
        times = [wall_s()] * count
        kept = await self._connection.fetch(PUT, self._slot, self._of, digests, [LETTERS] * count, texts, times)
        if len(kept) < count:
            raise Swallowed(HELD)
        self.shards += {LETTERS}.difference(self.shards)
        self._letters_from_s = monotonic() + AGAIN_S

    async def take(self, limit: int, away: Collection[int]) -> list[Item]:
        """At most `limit` rows of one shard whose primary is not known to be away; none while the table is locked. It
        takes a few queries at most."""
        try:
            found = await self._take(limit, away)
        except locks.LOCKED:
            self.locked("take")
            return []
        self.refusals.passed("take")
        return found

    async def _take(self, limit: int, away: Collection[int]) -> list[Item]:
        if not self._is_known:
            await self._find()
        for _ in range(len(self.shards)):
            shard = self.shards.pop(0)  # one after the other: none waits for another's
            self.shards.append(shard)
            if shard in away or (shard == LETTERS and monotonic() < self._letters_from_s):
                continue
            rows = await self._connection.fetch(TAKE, self._slot, shard, min(limit, AT_ONCE))
            if not rows:
                self.shards.remove(shard)
            else:
                if shard == LETTERS:
                    self._letters_from_s = monotonic() + AGAIN_S
                    return [_letter_of(one) for one in rows]
                return [
                    Item(f"held {one['id']}", HeldCommand(one["id"], shard, one["command"]), one["at_s"])
                    for one in rows
                ]
        return []

    async def acknowledge(self, items: Sequence[Item]) -> None:
        """Delete these. A command that was asked for again meanwhile has another number, and stays."""
        if items:
            ids = [item.raw.id for item in items]
            of = self._slot, items[0].raw.shard, ids
            gone = await self._connection.fetchval(LET_GO, *of)
            # Some may have another number by now; where all have gone there is nothing to ask for.
            if gone != len(ids) and await self._connection.fetchval(LEFT, *of):
                raise Swallowed(HELD)

    async def figures(self) -> HeldFigures:
        """How many rows there are, and how long the oldest has waited."""
        row = await self._connection.fetchrow(FIGURES, self._slot)
        return HeldFigures(row["held"], row["oldest_s"] or 0.0, row["missing"] or 0)

    async def made_up(self, missing: int) -> None:
        """What these rows were for is let go of."""
        await change(self._connection, SLOTS, FORGIVE, self._slot, missing)


def trial(slot: str) -> list[tuple[str, Any]]:
    """Writes to try, which are rolled back."""
    put = PUT, (slot, 1, ["trial"], [-1], [""], [0.0])
    return [put, put, (f"DELETE FROM {HELD} WHERE slot = $1 AND digest = 'trial'", (slot,))]


def _of_letter(letter: DeadLetter) -> str:
    payload = letter.payload.decode("utf-8", "backslashreplace").replace("\0", "\\0")  # as it would be set aside
    return json.dumps([payload, letter.reason, letter.source, letter.attempts])


def _letter_of(row: Any) -> Item:
    payload, reason, source, attempts = json.loads(row["command"])
    return Item(source, HeldLetter(row["id"], DeadLetter(payload.encode(), reason, source, attempts)), row["at_s"])


def _text(command: Command | bytes | str) -> str:
    """The command as ASCII JSON, which every database takes, whatever its encoding."""
    if isinstance(command, str):
        return command
    text = (command if isinstance(command, bytes) else encode(command)).decode()
    return text if text.isascii() else json.dumps(json.loads(text))
