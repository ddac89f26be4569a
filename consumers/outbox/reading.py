"""Chooses which rows of an outbox are taken next, and counts those that wait."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Final, Generic, Literal, NamedTuple, TypeVar

import asyncpg

from cachebus.consumers.outbox.letting import Resting
from cachebus.consumers.outbox.rows import PostgresRow, RowKey
from cachebus.consumers.worker.source import SENT_FROM_S
from cachebus.producers.outbox.table import LARGEST_BYTES, OutboxTable

Row = TypeVar("Row")
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


class Taker(ABC, Generic[Row]):
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

    async def rows(self, limit: int, away: Collection[int]) -> list[Row]:
        """At most `limit` rows that no other relay has in hand."""
        if self._resting.too_many:
            return []
        self._turn ^= 1
        shards = [shard for shard in self.shards if shard not in away]
        share = (limit + self._turn) // (1 + bool(shards) + self._full)
        found: list[Row] = []
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
    async def _some(self, kind: Kind, limit: int, shards: Sequence[int] = ()) -> list[Row]:
        """Rows of one kind, the oldest first. "due" is first the "fresh" ones, to be done at once, then the "late"
        ones."""

    @abstractmethod
    async def waits(self) -> Waits:
        """The counts of rows that wait now."""


class PostgresTaker(Taker[PostgresRow]):
    """Takes rows in PostgreSQL, and locks them."""

    def __init__(self, connection: asyncpg.Connection, table: OutboxTable, namespace: str, resting: Resting) -> None:
        super().__init__(resting)
        self._connection = connection
        self._table = table
        self._namespace = namespace
        self.as_bytes = False
        """Whether commands are taken as they are in the database, in whatever encoding."""

    async def _some(self, kind: Kind, limit: int, shards: Sequence[int] = ()) -> list[PostgresRow]:
        if limit == 0:
            return []
        read = "convert_to(command, getdatabaseencoding())" if self.as_bytes else "command"
        command = f"CASE WHEN octet_length(command) <= {LARGEST_BYTES} THEN {read} END"
        sql = _TAKE[kind].format(t=self._table, limit=int(limit), command=command)
        if resting := self._resting.now:
            sql = sql.replace(" WHERE ", f" WHERE {_but(resting)} AND ", 1)
        more = [shards] if shards else []
        return [PostgresRow(*row) for row in await self._connection.fetch(sql, self._namespace, *more)]

    async def waits(self) -> Waits:
        """The rows that wait now: counted up to `COUNTED`, estimated by their ids beyond that."""
        row = await self._connection.fetchrow(_WAITS.format(t=self._table), self._namespace)
        due, span, share, held, now_s, since_s, first, last, shards, latest_s = row
        self.shards.update(shards or ())
        rest, rests_since_s = await self._rest()
        ages_s = [now_s - each for each in (since_s, rests_since_s) if each is not None]
        oldest_s = max(0.0, *ages_s, self._resting.first_seen.age_s(first, last))
        if due > COUNTED:  # of the ids of all namespaces this one has as large a share as of those that were counted
            due = max(due, round(span * share))
        return Waits(due + held + rest, oldest_s, held, latest_s or 0.0)

    async def _rest(self) -> tuple[int, float | None]:
        """How many rows rest that this relay could neither apply nor set aside, and since when the first waits."""
        rows = self._resting.put_off.rows
        if not rows:
            return 0, None
        ids, shards = [row.id for row in rows], list({row.waits_for for row in rows})
        sql, again_s = _REST.format(t=self._table), self._resting.again_s
        found = await self._connection.fetch(sql, self._namespace, shards, ids, again_s)
        return sum(row["rests"] for row in found), self._resting.put_off.seen(row["id"] for row in found)


def _but(rows: Sequence[RowKey]) -> str:
    """SQL: it is none of these rows. Most others are told from them by their ids."""
    ids, shards, due_s = (f"'{{{','.join(map(str, of))}}}'" for of in zip(*rows, strict=True))
    keys = f"SELECT * FROM unnest({ids}::bigint[], {shards}::int[], {due_s}::float8[])"
    return f"(id <> ALL ({ids}::bigint[]) OR (id, waits_for, extract(epoch FROM due_at)::float8) NOT IN ({keys}))"


# The clock is read as of the statement, which an index can be searched by. Times are told in seconds: those of rows may
# be infinite, or beyond what anybody else can count.
# The columns of `PostgresRow`.
_HEAD: Final = """\
SELECT tableoid, ctid, id, {command}, waits_for, extract(epoch FROM greatest(created_at, due_at))::float8,
    least(attempts::bigint + 1, 2147483647), extract(epoch FROM due_at)::float8
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

# What was written at a time to come, or before this was, tells nobody since when it waits.
_SINCE: Final = f"""\
CASE WHEN created_at <= statement_timestamp() AND greatest(created_at, due_at) > to_timestamp({SENT_FROM_S})
    THEN greatest(created_at, due_at) END AS since"""
_WAITS: Final = f"""\
WITH RECURSIVE due AS (
    SELECT id, {_SINCE} FROM {{t.rows}} WHERE namespace = $1 AND waits_for = -1 AND due_at <= statement_timestamp()
    ORDER BY due_at, id LIMIT {COUNTED + 1}),
held AS (
    SELECT id, {_SINCE} FROM {{t.rows}}
    WHERE namespace = $1 AND waits_for > -1 AND due_at <= statement_timestamp() LIMIT {COUNTED + 1}),
times AS (
    SELECT min(since) AS since, min(id) FILTER (WHERE since IS NULL) AS first,
        max(id) FILTER (WHERE since IS NULL) AS last
    FROM (SELECT * FROM due UNION ALL SELECT * FROM held) AS waits),
shards AS (
    (SELECT waits_for FROM {{t.rows}} WHERE namespace = $1 ORDER BY waits_for LIMIT 1)
    UNION ALL
    SELECT (SELECT o.waits_for FROM {{t.rows}} o WHERE o.namespace = $1 AND o.waits_for > shards.waits_for
            ORDER BY o.waits_for LIMIT 1)
    FROM shards WHERE shards.waits_for IS NOT NULL)
SELECT (SELECT count(*) FROM due),
    (SELECT id FROM {{t.rows}} WHERE namespace = $1 AND waits_for = -1 AND due_at <= statement_timestamp()
     ORDER BY due_at DESC, id DESC LIMIT 1) - (SELECT min(id) FROM due) + 1,
    (SELECT count(*) / (max(id)::float8 - min(id) + 1) FROM due),
    (SELECT count(*) FROM held),
    extract(epoch FROM clock_timestamp())::float8,
    extract(epoch FROM (SELECT since FROM times))::float8,
    (SELECT first FROM times),
    (SELECT last FROM times),
    (SELECT array_agg(waits_for) FROM shards WHERE waits_for <> -1),
    (SELECT extract(epoch FROM due_at)::float8 FROM {{t.rows}}
     WHERE namespace = $1 AND waits_for = -1 AND due_at > statement_timestamp() ORDER BY due_at DESC LIMIT 1)
        - extract(epoch FROM clock_timestamp())::float8"""
# Those that are due by now are counted with the others.
_REST: Final = """\
SELECT id, due_at > statement_timestamp() AS rests FROM {t.rows}
WHERE namespace = $1 AND waits_for = ANY($2::int[]) AND due_at > '-infinity'
    AND due_at <= clock_timestamp() + make_interval(secs => $4) AND id = ANY($3::bigint[])"""
