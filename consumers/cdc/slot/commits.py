"""Commits that the log has, and that other sessions may not see yet: they wait for a synchronous standby. And
transactions that have yet to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.worker.transactions import ends_prepared, ends_session, joined

if TYPE_CHECKING:
    import asyncpg

RUNNING: Final = """
SELECT l.transactionid::text AS xid, l.pid, p.gid, p.database
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
  AND coalesce(p.database, a.datname, current_database()) = current_database()
  AND coalesce(a.state NOT LIKE 'idle in transaction%', true)
"""
"""The transactions that may be about to commit. Each has a lock on its own number until all sessions see it."""
UNSEEN: Final = (
    "commits are in the log that nobody sees: they wait for a synchronous standby. What they changed is let go of once "
    "they are seen; all else goes on, but the slot does not, so the server keeps WAL"
)
UNSEEN_REMEDY: Final = (
    "bring the standby back, or change synchronous_standby_names (who waits: "
    "SELECT pid, query FROM pg_stat_activity WHERE wait_event = 'SyncRep';)"
)


class OpenTransaction(NamedTuple):
    """An open transaction that has written. One that is prepared has no process."""

    xid: str
    pid: int | None
    gid: str | None
    database: str | None
    """That of one that is prepared."""


WAITS_S: Final = 5.0
"""How long open transactions may hold up that something is made up for, before that is reported."""
NAMED: Final = 5
"""So many of them are named."""


class Commits:
    """Whether all is visible by now that was in the log when it was passed by. Before, it can't be made up for: a cache
    would load, and keep, the old rows again. Nobody tells which transactions those are, so all count that ran then."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._running: set[str] | None = None
        self._losses, self._since_s = "", 0.0
        self.are_told_at_once = False
        """Whether nobody looks a second time."""

    async def unseen(self, connection: asyncpg.Connection, losses: str, *, owed: bool) -> list[OpenTransaction]:
        """Those of which something may be invisible. `owed`: whether anything of the slot is to be made up for;
        `losses`: what tells what was passed by, by whomever, from what was before."""
        if not owed:
            self._running = None
            return []
        now = {row["xid"]: OpenTransaction(*row) for row in await connection.fetch(RUNNING)}
        if self._running is None or losses != self._losses:
            self._running, self._losses, self._since_s = set(now), losses, self._clock()
        self._running &= now.keys()
        return sorted(now[xid] for xid in self._running)

    @property
    def are_late(self) -> bool:
        """Whether they are waited for so long that somebody should look at them."""
        return self.are_told_at_once or self._clock() - self._since_s > WAITS_S

    def forget(self) -> None:
        """This worker did not have the slot until now: others may have passed by more."""
        self._running = None


WRITING: Final = """
WITH held AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted)
SELECT DISTINCT o.relation::bigint AS of, x.transactionid::text AS xid, x.pid, p.gid, p.database
FROM held o
JOIN held x ON x.virtualtransaction = o.virtualtransaction AND x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock'
LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE o.locktype = 'relation' AND o.relation::bigint = ANY ($1::bigint[])
  AND o.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND o.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
"""Who has written to these tables. Each keeps its lock until all sessions see what it wrote, idle or prepared, also
while it waits for a standby. All locks are read at once, as a transaction that is prepared hands its own on."""


class _Since(NamedTuple):
    state: str
    at_s: float
    xids: frozenset[str]


class EarlierWriters:
    """Who wrote to a table before it was followed as it is now, and has not ended. PostgreSQL tells of their rows by
    what was published as they were written, and the next who loads still gets the old rows. So what is made up for
    before they have ended is not made up for."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._since: dict[str, _Since] = {}
        self.are_told_at_once = False
        """Whether nobody looks a second time."""

    async def left(
        self, connection: asyncpg.Connection, tables: Mapping[str, tuple[str, Sequence[int]]]
    ) -> dict[str, list[OpenTransaction]]:
        """Those of each table that wrote to it before it was first found in this state, where there are any. `tables`:
        their states, and the OIDs of all that their rows are in."""
        found = await self._writing(connection, tables)
        since, now_s = self._since, self._clock()
        self._since, left = {}, {}
        for name, (state, _) in tables.items():
            before = since.get(name)
            if before is None or before.state != state:
                before = _Since(state, now_s, frozenset(one.xid for one in found[name]))
            those = [one for one in found[name] if one.xid in before.xids]
            self._since[name] = before._replace(xids=frozenset(one.xid for one in those))
            if those:
                left[name] = those
        return left

    def are_late(self, name: str) -> bool:
        """Whether they are waited for so long that somebody should look at them."""
        return self.are_told_at_once or self._clock() - self._since[name].at_s > WAITS_S

    def forget(self) -> None:
        """This worker did not have the slot until now: others may have gone behind what is not seen yet."""
        self._since = {}

    async def _writing(
        self, connection: asyncpg.Connection, tables: Mapping[str, tuple[str, Sequence[int]]]
    ) -> dict[str, list[OpenTransaction]]:
        of: dict[int, str] = {oid: name for name, (_, oids) in tables.items() for oid in oids}
        found: dict[str, dict[str, OpenTransaction]] = {name: {} for name in tables}
        for row in await connection.fetch(WRITING, list(of)) if of else ():
            one = OpenTransaction(row["xid"], row["pid"], row["gid"], row["database"])
            found[of[row["of"]]][one.xid] = one
        return {name: sorted(those.values()) for name, those in found.items()}


def named(writing: Sequence[OpenTransaction]) -> str:
    """Who they are, as a part of a sentence."""
    of = dict.fromkeys(f"process {one.pid}" if one.pid else f"prepared as {one.gid!r}" for one in writing)
    more = f" and {len(of) - NAMED} others" if len(of) > NAMED else ""
    return ", ".join(list(of)[:NAMED]) + more


def ended_by(writing: Sequence[OpenTransaction]) -> str:
    """What shows them, and ends each."""
    pids = sorted({one.pid for one in writing if one.pid})[:NAMED]
    prepared = sorted({(one.gid, one.database or "") for one in writing if one.gid})[:NAMED]
    those = ", ".join(map(str, pids))
    looks = f"SELECT pid, usename, state, xact_start, query FROM pg_stat_activity WHERE pid IN ({those});"
    ends = f"let them end: {looks} or {joined(map(ends_session, pids))}" if pids else ""
    return joined([ends, *(ends_prepared(*one) for one in prepared)])
