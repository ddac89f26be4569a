"""Chooses which rows of an outbox are taken next, and counts those that wait."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, Final, Literal, NamedTuple

import asyncpg

from cachebus.consumers.outbox.letting import Resting
from cachebus.producers.outbox.table import LARGEST_BYTES, OutboxTable

COUNTED: Final = 100_000
"""Up to so many rows are counted; beyond that the number is estimated."""


Kind = Literal["due", "fresh", "late", "held"]


class Waits(NamedTuple):
    """How many rows are due, how long the oldest has waited, and how many of them wait for a primary that is away."""

    backlog: int
    oldest_s: float
    held: int
    latest_s: float
    """In how many seconds the last row is due that is not due yet."""


class Taker(ABC):
    """Takes rows of three kinds in turn: those to be done at once, those that have become due, and those that wait for
    a primary of L2. So no kind keeps another from being taken, however many rows it has."""

    def __init__(self, resting: Resting) -> None:
        self._resting = resting
        self.shards: set[int] = set()
        """Those for whose primary rows may wait."""
        self._turn = 0
        self._full = False

    def some_may_go(self, away: Collection[int]) -> bool:
        """Whether there may be rows that wait for a primary which answers by now."""
        return any(shard not in away for shard in self.shards)

    async def rows(self, limit: int, away: Collection[int]) -> list[Any]:
        """At most `limit` rows that no other relay has in hand."""
        if self._resting.too_many:
            return []
        self._turn ^= 1
        shards = [shard for shard in self.shards if shard not in away]
        share = (limit + self._turn) // (1 + bool(shards) + self._full)
        found: list[Any] = []
        if shards:
            found += await self._some("held", min(share, limit), shards)
            if len(found) < share:
                self.shards.difference_update(shards)  # of those that others have in hand the next look tells
        due: Kind = "due"
        if self._full and (part := min(share, limit - len(found))):
            late = await self._some("late", part)
            found += late
            due = "fresh" if late else "due"
        if left := limit - len(found):
            found += await self._some(due, left)
        self._full = len(found) == limit
        return found

    @abstractmethod
    async def _some(self, kind: Kind, limit: int, shards: Sequence[int] = ()) -> list[Any]:
        """Rows of one kind, the oldest first. "due" is first the "fresh" ones, to be done at once, then the "late"
        ones."""

    @abstractmethod
    async def waits(self) -> Waits:
        """The counts of rows that wait now."""


class PostgresTaker(Taker):
    """Takes rows in PostgreSQL, and locks them."""

    def __init__(self, connection: asyncpg.Connection, table: OutboxTable, namespace: str, resting: Resting) -> None:
        super().__init__(resting)
        self._connection = connection
        self._table = table
        self._namespace = namespace
        self.as_bytes = False
        """Whether commands are taken as they are in the database, in whatever encoding."""

    async def _some(self, kind: Kind, limit: int, shards: Sequence[int] = ()) -> list[Any]:
        if limit == 0:
            return []
        read = "convert_to(command, getdatabaseencoding())" if self.as_bytes else "command"
        command = f"CASE WHEN octet_length(command) <= {LARGEST_BYTES} THEN {read} END"
        sql = _TAKE[kind].format(t=self._table, limit=int(limit), command=command)
        if resting := self._resting.ids:
            sql = sql.replace(" WHERE ", f" WHERE id <> ALL ('{{{','.join(map(str, resting))}}}'::bigint[]) AND ", 1)
        more = [shards] if shards else []
        found: list[Any] = await self._connection.fetch(sql, self._namespace, *more)
        return found

    async def waits(self) -> Waits:
        """The rows that wait now: counted up to `COUNTED`, estimated by their ids beyond that."""
        row = await self._connection.fetchrow(_WAITS.format(t=self._table), self._namespace)
        due, span, held, oldest_s, shards, latest_s = row
        self.shards.update(shards or ())
        return Waits(
            (due if due <= COUNTED else max(due, span)) + held, max(0.0, oldest_s or 0.0), held, latest_s or 0.0
        )


# The clock is read as of the statement, which an index can be searched by. Times are told in seconds: those of rows may
# be infinite, or beyond what anybody else can count.
_HEAD: Final = """\
SELECT tableoid, ctid, id, {command}, waits_for, extract(epoch FROM greatest(created_at, due_at))::float8,
    least(attempts::bigint + 1, 2147483647)
FROM {t.rows} WHERE namespace = $1 AND """
_TAIL: Final = " LIMIT {limit} FOR UPDATE SKIP LOCKED"
# There is no watermark: a row is found whenever its transaction commits, whatever its id.
_ORDER: Final = f"ORDER BY due_at, id {_TAIL}"
_TAKE: Final[dict[Kind, str]] = {
    "due": f"{_HEAD} waits_for = -1 AND due_at <= statement_timestamp() {_ORDER}",
    "fresh": f"{_HEAD} waits_for = -1 AND due_at = '-infinity' {_ORDER}",
    "late": f"{_HEAD} waits_for = -1 AND due_at > '-infinity' AND due_at <= statement_timestamp() {_ORDER}",
    "held": f"{_HEAD} waits_for = ANY($2::int[]) AND due_at <= statement_timestamp() {_TAIL}",
}

_SINCE: Final = "extract(epoch FROM greatest(created_at, due_at))::float8 AS since"
_WAITS: Final = f"""\
WITH RECURSIVE due AS (
    SELECT id, {_SINCE} FROM {{t.rows}} WHERE namespace = $1 AND waits_for = -1 AND due_at <= statement_timestamp()
    ORDER BY due_at, id LIMIT {COUNTED + 1}),
held AS (
    SELECT {_SINCE} FROM {{t.rows}}
    WHERE namespace = $1 AND waits_for > -1 AND due_at <= statement_timestamp() LIMIT {COUNTED + 1}),
shards AS (
    (SELECT waits_for FROM {{t.rows}} WHERE namespace = $1 ORDER BY waits_for LIMIT 1)
    UNION ALL
    SELECT (SELECT o.waits_for FROM {{t.rows}} o WHERE o.namespace = $1 AND o.waits_for > shards.waits_for
            ORDER BY o.waits_for LIMIT 1)
    FROM shards WHERE shards.waits_for IS NOT NULL)
SELECT (SELECT count(*) FROM due),
    (SELECT id FROM {{t.rows}} WHERE namespace = $1 AND waits_for = -1 AND due_at <= statement_timestamp()
     ORDER BY due_at DESC, id DESC LIMIT 1) - (SELECT min(id) FROM due) + 1,
    (SELECT count(*) FROM held),
    extract(epoch FROM clock_timestamp())::float8
        - (SELECT min(since) FROM (SELECT since FROM due UNION ALL SELECT since FROM held) AS all_of_them
           WHERE abs(since) < 'infinity'),
    (SELECT array_agg(waits_for) FROM shards WHERE waits_for <> -1),
    (SELECT extract(epoch FROM due_at)::float8 FROM {{t.rows}}
     WHERE namespace = $1 AND waits_for = -1 AND due_at > statement_timestamp() ORDER BY due_at DESC LIMIT 1)
        - extract(epoch FROM clock_timestamp())::float8"""
