"""Who has a table of PostgreSQL locked, or rows of it, or waits to lock it, so that others wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.partitions import tree_of
from cachebus.consumers.worker.source import Finding
from cachebus.consumers.worker.transactions import ends_either, joined

if TYPE_CHECKING:
    from asyncpg import Connection

LOCKED: Final = asyncpg.LockNotAvailableError
"""What a statement raises that has waited for a lock for too long."""
LONGEST: Final = "1s"
"""No statement of a worker over its own tables waits longer for a lock: what need not be stored goes on."""
REST_S: Final = 5.0
"""How long a table is not tried that was found locked: who waits for it has others wait."""
TABLE: Final = ["ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"]
"""The locks that keep others from writing."""
ROWS: Final = ["RowShareLock", "RowExclusiveLock"]
"""Whoever has locked rows of a table, or changed them, has one of these locks on it, and a number of its own."""
FORGET_S: Final = 150.0
"""So long after the last time a refusal counts no more: what was refused is tried again sooner, if it still has to
be."""
SEVERAL: Final = 5
"""So many are named."""
_ROW: Final = "SELECT xmax::text FROM {table} WHERE {column} = $1 AND xmax::text <> '0'"
_ROWS: Final = """
WITH free AS MATERIALIZED (
  SELECT ctid FROM {table} WHERE {where} AND xmax::text <> '0' LIMIT 1000 FOR UPDATE SKIP LOCKED
)
SELECT DISTINCT xmax::text FROM {table}
WHERE {where} AND xmax::text <> '0' AND ctid NOT IN (SELECT ctid FROM free) LIMIT 1000
"""
_FREE: Final = "SELECT true FROM {table} WHERE {column} = $1 FOR NO KEY UPDATE SKIP LOCKED"
"""Whoever has locked another row has the same lock on the table: whether it is free the row alone tells."""
_HERE: Final = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
_NAME: Final = "coalesce(nullif(a.application_name, ''), a.usename)"
# Who waits for a lock has all others wait behind it: what it waits for itself is to be ended.
_HOLDERS: Final = f"""
WITH locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE pid IS DISTINCT FROM pg_backend_pid()),
holding AS (
  SELECT DISTINCT virtualtransaction, pid, granted FROM locks
  WHERE locktype = 'relation' AND relation = to_regclass($1) AND mode = ANY ($2) AND {_HERE}
),
first AS (
  SELECT pid, virtualtransaction, NULL::int AS behind FROM holding WHERE granted
  UNION
  SELECT b.pid, NULL, h.pid FROM holding h, unnest(pg_blocking_pids(h.pid)) AS b (pid)
  WHERE NOT granted AND b.pid NOT IN (SELECT pid FROM holding WHERE pid IS NOT NULL) AND b.pid <> 0
)
SELECT DISTINCT h.pid, h.behind, p.gid, p.database, {_NAME} AS name
FROM first h LEFT JOIN pg_stat_activity a ON a.pid = h.pid
LEFT JOIN locks x ON h.pid IS NULL AND x.virtualtransaction = h.virtualtransaction AND x.locktype = 'transactionid'
LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE h.pid IS NOT NULL OR p.gid IS NOT NULL ORDER BY h.pid LIMIT {SEVERAL}
"""
# A row that is locked, or changed, has as its xmax the number of what does it, which is locked until that ends. Two
# tell nobody: that of a savepoint, once it is released, and that of several together who share a row, which `sharers`
# tells as far as it can be no other. For each of these stands whoever has locked, or changed, any row of the table, in
# a transaction that has a number. Workers are left out: they keep none.
_LOCKERS: Final = f"""
WITH locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted AND pid IS DISTINCT FROM pg_backend_pid()),
numbers AS MATERIALIZED (
  SELECT pid, virtualtransaction, transactionid FROM locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock'
),
lockers AS (
  SELECT pid, virtualtransaction, true AS surely FROM numbers WHERE transactionid::text = ANY ($3)
  UNION
  SELECT pid, virtualtransaction, false FROM locks
  WHERE locktype = 'relation' AND mode = ANY ($2) AND {_HERE}
    AND relation IN (SELECT relid FROM {tree_of("to_regclass($1)")} AS tree)
    AND virtualtransaction IN (SELECT virtualtransaction FROM numbers)
    AND NOT EXISTS (
      SELECT FROM pg_stat_activity w WHERE w.pid = locks.pid AND w.application_name ~ '^cachebus(-cdc | outbox$)')
    AND EXISTS (SELECT FROM unnest($3::text[]) AS xid WHERE xid NOT IN (SELECT transactionid::text FROM numbers))
)
SELECT l.virtualtransaction, l.pid, bool_or(l.surely) AS surely, p.gid, p.database, {_NAME} AS name,
  extract(epoch FROM statement_timestamp() - coalesce(a.xact_start, p.prepared))::float8 AS age_s
FROM lockers l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN numbers n ON l.pid IS NULL AND n.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_prepared_xacts p ON p.transaction = n.transactionid
WHERE (l.pid IS NOT NULL AND a.application_name IS DISTINCT FROM $4) OR p.gid IS NOT NULL
GROUP BY l.virtualtransaction, l.pid, p.gid, p.database, a.application_name, a.usename, a.xact_start, p.prepared
ORDER BY age_s DESC NULLS LAST, l.pid
"""
ANY: Final = ["0"]
"""In place of the number in a row that can't be seen: who has locked any may have locked that one."""
# Of a number that no running transaction can have, and that keeps a row all the same: it stands for several.
_IS_SEVERAL: Final = """
SELECT xid FROM unnest($1::text[]) AS xid
WHERE xid <> '0' AND mxid_age(xid::xid) BETWEEN 1 AND 2147483646 AND (age(xid::xid) <= 0
  OR age(xid::xid) > age((txid_snapshot_xmin(txid_current_snapshot()) & 4294967295)::text::xid))
"""
_SHARERS: Final = """
WITH now AS MATERIALIZED (SELECT txid_snapshot_xmax(txid_current_snapshot()) + 2147483648 AS far)
SELECT xid::text FROM now, pg_get_multixact_members($1::text::xid)
WHERE txid_status(far - ((far - xid::text::bigint) & 4294967295)) = 'in progress'
"""
ONE_BY_ONE: Final = "one after the other, until it is over: "
UNTOLD: Final = "a lock is refused again and again, and nobody can tell who has it"
ASKS: Final = "SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE wait_event_type = 'Lock';"


class LockHolder(NamedTuple):
    """Who has a table locked, or rows of it."""

    who: str
    does: str
    """What it does, as the end of a sentence."""
    ends: str
    """The SQL that ends it."""
    surely: bool = True
    """False if it is this one, or another one of those that are told with it."""


class Locker(NamedTuple):
    """Who has rows of a table locked: see `LockHolder`."""

    transaction: str
    """Tells it from all others."""
    age_s: float | None
    """For how long it is open. Not every role may see that."""
    holder: LockHolder


class LockRefusals:
    """Counts by looks what is refused a lock. Twice in a row, a look apart, is no lock that somebody has for a moment:
    it is told then, whether or not anybody can tell who has it."""

    def __init__(self, *, waited: bool = False, clock: Clock = monotonic) -> None:
        self._clock = clock
        self.waited = waited
        """Whether something was given up, since a lock was not had, and no look has seen all free since."""
        self._new = set[str]()
        self._times: dict[str, int] = {}
        self._last_s: dict[str, float] = {}

    @property
    def has_some(self) -> bool:
        """Whether a look has something to tell, or to note."""
        return self.waited or bool(self._times)

    def refused(self, what: str = "") -> None:
        """A lock was not had in time for this."""
        self.waited = True
        self._new.add(what)
        self._last_s[what] = self._clock()

    def passed(self, what: str = "") -> None:
        """This was done."""
        self._new.discard(what)
        self._times.pop(what, None)

    def looked(self, *, told: bool) -> bool:
        """Note a look; returns whether something is refused again and again. `told`: whether that look has told who has
        the lock, which is all there is to tell."""
        self.waited = told
        now_s = self._clock()
        for what in () if told else self._new:
            self._times[what] = self._times.get(what, 0) + 1
        self._new.clear()
        self._times = (
            {}
            if told
            else {what: times for what, times in self._times.items() if now_s - self._last_s[what] < FORGET_S}
        )
        return any(times > 1 for times in self._times.values())


async def holders(connection: Connection, table: str) -> list[LockHolder]:
    """Who has this table, under the name that it has in this session, locked so that others can't write; who keeps
    somebody else from locking it, so that all wait."""
    return [_holder(row) for row in await connection.fetch(_HOLDERS, table, TABLE)]


async def lockers(
    connection: Connection, table: str, xids: Iterable[str] = ANY, *, besides: str | None = None
) -> list[Locker]:
    """Who has locked, or changed, the rows of this table that have these numbers as their xmax; the oldest first.
    `besides`: the name of sessions that do so for a moment."""
    rows = await connection.fetch(_LOCKERS, table, ROWS, list(xids), besides)
    return [
        Locker(
            row["virtualtransaction"], row["age_s"], LockHolder(_who(row), "has locked it", _ends(row), row["surely"])
        )
        for row in rows
    ]


async def sharers(connection: Connection, xids: Iterable[str]) -> set[str]:
    """The same numbers, by which rows are locked now; in place of one of several together those of each of them."""
    found, several = set(xids), await connection.fetch(_IS_SEVERAL, list(xids))
    for (xid,) in several:
        try:
            async with connection.transaction():
                members = {row[0] for row in await connection.fetch(_SHARERS, xid)}
        except asyncpg.PostgresError:  # it may not be asked
            continue
        if members:
            found = (found - {xid}) | members
    return found


async def holders_of_row(connection: Connection, table: str, column: str, value: str) -> list[LockHolder]:
    """Who has the row locked that has this value in this column."""
    if await connection.fetchval(_FREE.format(table=table, column=column), value):
        return []
    xid = await connection.fetchval(_ROW.format(table=table, column=column), value)
    return [one.holder for one in await lockers(connection, table, await sharers(connection, [xid]))] if xid else []


async def holders_of_rows(connection: Connection, table: str, where: str, *given: object) -> list[LockHolder]:
    """Who has some of those rows locked that were waited for just now."""
    xids = [row[0] for row in await connection.fetch(_ROWS.format(table=table, where=where), *given)]
    return [one.holder for one in await lockers(connection, table, await sharers(connection, xids))] if xids else []


async def holders_of_some_row(connection: Connection, table: str) -> list[LockHolder]:
    """Who may have the row locked that was waited for: whoever has locked any."""
    return [one.holder for one in await lockers(connection, table)]


def finding(assumption: str, subject: str, by: Sequence[LockHolder], held_up: str) -> Finding:
    """The finding that these have locked something, and what can't be done meanwhile. Without any, nobody can tell who
    has."""
    said = [f"{one.who} {one.does}" for one in by if one.surely]
    if perhaps := [one for one in by if not one.surely]:
        said.append(one_of(perhaps, "has locked it"))
    problem = f"{' and '.join(said) or UNTOLD}: {held_up}"
    return Finding(assumption, subject, problem, ends(by) or ASKS)


def one_of(those: Sequence[LockHolder], does: str) -> str:
    """That one of these does it, or some of them; the sentence ends with who they are. A single one is no more certain:
    workers lock rows too, for a moment, and are left out."""
    if len(those) == 1:
        return f"{those[0].who}, if nobody else, {does}"
    more = f" and {len(those) - SEVERAL} more" if len(those) > SEVERAL else ""
    return f"one of these (or several) {does}: {', '.join(one.who for one in those[:SEVERAL])}{more}"


def ends(those: Sequence[LockHolder]) -> str:
    """The SQL that ends these: of those of whom one may be it, each by itself. Who obeys it may be one of them."""
    perhaps = [one.ends for one in those if not one.surely][:SEVERAL]
    alternatives = "; or ".join(one.removesuffix(";") for one in perhaps)
    if len(perhaps) > 1:
        alternatives = f"{ONE_BY_ONE}{alternatives};"
    elif perhaps:
        (alternatives,) = perhaps
    return joined([*[one.ends for one in those if one.surely][:SEVERAL], alternatives])


def _holder(row: asyncpg.Record) -> LockHolder:
    does = f"has the session {row['behind']} wait to lock it" if row["behind"] else "has locked it"
    return LockHolder(_who(row), does, _ends(row))


def _who(row: asyncpg.Record) -> str:
    if not row["pid"]:
        return f"the prepared transaction {clean(row['gid'])}"
    return f"the session {row['pid']} ({clean(row['name'] or '')})"


def _ends(row: asyncpg.Record) -> str:
    return ends_either(row["pid"], row["gid"], row["database"])
