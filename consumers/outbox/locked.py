"""Rows that another session has locked, and keeps: relays pass over them for as long as its transaction lasts. Tables
that one has locked: nothing is done there meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import asyncpg

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.outbox.memory import Memories
from cachebus.consumers.outbox.rows import SINCE
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Finding
from cachebus.consumers.worker.transactions import joined
from cachebus.producers.outbox.table import OutboxTable

ASSUMPTION: Final = "locks"
APPLICATION: Final = "cachebus outbox"
"""The name of relays' sessions, which lock rows for a while."""
LOCKED_S: Final = 60.0
"""A transaction that keeps rows for longer is reported."""
LOOKED_AT: Final = 100
"""So many rows are looked at: those that would be taken next."""
UNSEEN: Final = "for how long, this role can't see: GRANT pg_read_all_stats TO {};"
KEEPS: Final = "has locked rows that are due, and keeps them, so that relays pass over these"
REFUSED: Final = "rows are not taken, set aside, or removed"
OVER: Final = "a lock was waited for in vain, and nobody has it any more"


class Locked:
    """Looks, over one connection, who keeps rows locked."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        table: OutboxTable,
        namespace: str,
        memories: Memories,
        work_time: Clock = monotonic,
    ) -> None:
        self._connection = connection
        self._table = table
        self._memories = memories
        self._namespace = namespace
        self._seen_from_s: dict[str, float] = {}
        """By transaction. When it began, only some roles may see."""
        self._trials = set[str]()
        """The numbers by which this one had rows locked, and has no more: rows that still have them are free."""
        self.refusals = table_locks.LockRefusals(waited=True, clock=work_time)
        """What was not done, since a table was locked; the first look asks all the same. What was refused is tried
        again by `work_time`."""

    async def of_tables(self) -> list[Finding]:
        """Who has locked a table that was waited for, or what relays remember in it, and the SQL that ends it."""
        found = await self._of_tables() if self.refusals.waited else []
        if self.refusals.looked(told=bool(found)):
            relays = self._memories.place
            by = await table_locks.holders_of_some_row(self._connection, relays) if relays else []
            found = [table_locks.finding(ASSUMPTION, self._table.rows, by, REFUSED)]
        return found

    async def _of_tables(self) -> list[Finding]:
        relays, found = self._memories.place, list[Finding]()
        held_up = {
            self._table.rows: "no row is taken, or removed once it is applied",
            self._table.dead: "what can't be applied can't be set aside",
            relays: "relays can't tell which rows they may take",
        }
        for name, what in held_up.items():
            by = await table_locks.holders(self._connection, name) if name else []
            if not by and name and name == relays:
                by = await table_locks.holders_of_row(self._connection, name, "namespace", self._namespace)
            if by:
                found.append(table_locks.finding(ASSUMPTION, clean(name), by, what))
        return found

    async def findings(self, *, once: bool = False) -> list[Finding]:
        """Who has locked rows for long, that have waited for as long, and the SQL that ends it. `once`: no other look
        sees whether he still has, where this role can't see since when. The rows tell then since when at most."""
        head = await self._connection.fetch(_HEAD.format(t=self._table), self._namespace, LOCKED_S)
        self._trials.intersection_update([row["xid"] for row in head])
        head = [row for row in head if row["xid"] not in self._trials]
        self._see(await self._lockers({row["xid"] for row in head}))
        head = [row for row in head if row["old"]]
        old = self._old(await self._lockers({row["xid"] for row in head}), once=once)
        if any(not one.holder.surely for one in old):  # only now: to ask the rows themselves is to lock them
            old = self._old(await self._lockers(await self._kept_by(head)), once=once)
        unseen = once and any(one.age_s is None for one in old)
        role = await self._connection.fetchval("SELECT quote_ident(current_user)") if unseen else ""
        more = [UNSEEN.format(clean(role))] if unseen else []
        rows, surely = self._table.rows, [one.holder for one in old if one.holder.surely]
        told = [Finding(ASSUMPTION, f"{rows}, {one.who}", f"it {KEEPS}", joined([one.ends, *more])) for one in surely]
        if perhaps := [one.holder for one in old if not one.holder.surely]:  # none that has begun since
            ends = joined([table_locks.ends(perhaps), *more])
            told.append(Finding(ASSUMPTION, rows, table_locks.one_of(perhaps, KEEPS), ends))
        return told

    async def _lockers(self, xids: Collection[str]) -> list[table_locks.Locker]:
        if not xids:
            return []
        return await table_locks.lockers(self._connection, self._table.rows, xids, besides=APPLICATION)

    def _see(self, found: Sequence[table_locks.Locker]) -> None:
        """Also those of rows that do not wait for long yet: they may keep them until then."""
        now_s = monotonic()
        self._seen_from_s = {one.transaction: self._seen_from_s.get(one.transaction, now_s) for one in found}

    def _old(self, found: Sequence[table_locks.Locker], *, once: bool) -> list[table_locks.Locker]:
        now_s = monotonic()
        return [
            one
            for one in found
            if (one.age_s or 0.0) >= LOCKED_S
            or now_s - self._seen_from_s.get(one.transaction, now_s) >= LOCKED_S
            or (once and one.age_s is None)
        ]

    async def _kept_by(self, head: Sequence[Any]) -> set[str]:
        """The numbers of those who have these rows locked. One that tells nobody may have long ended: only those count
        whose rows are locked now."""
        untold = {(row["part"], row["place"]) for row in head if not row["told"]}
        untold -= await self._free(untold)
        places = [place for _, place in untold]
        rows = await self._connection.fetch(_XMAX.format(t=self._table), self._namespace, places)
        still = {row["xid"] for row in rows if (row["part"], row["place"]) in untold}
        several = await table_locks.sharers(self._connection, still)
        return several | {row["xid"] for row in head if row["told"]}

    async def _free(self, rows: Collection[tuple[int, Any]]) -> set[tuple[int, Any]]:
        """Those of these rows that nobody has locked: they are, for a moment, which writes WAL."""
        trial = self._connection.transaction()
        await trial.start()
        try:
            sql = _FREE.format(t=self._table)
            free = await self._connection.fetch(sql, self._namespace, [place for _, place in rows])
            self._trials.add(await self._connection.fetchval(_OURS))
        finally:
            await trial.rollback()
        return {(row["part"], row["place"]) for row in free}


# The rows that would be taken next, and that somebody has locked, or had. See `table_locks.lockers`.
_HEAD: Final = f"""\
WITH due AS (
    (SELECT tableoid, ctid, xmax, {SINCE} AS since FROM {{t.rows}}
     WHERE namespace = $1 AND waits_for = -1 AND due_at <= statement_timestamp() ORDER BY due_at, id LIMIT {LOOKED_AT})
    UNION ALL
    (SELECT tableoid, ctid, xmax, {SINCE} FROM {{t.rows}}
     WHERE namespace = $1 AND waits_for > -1 AND due_at <= statement_timestamp() LIMIT {LOOKED_AT}))
SELECT tableoid::bigint AS part, ctid AS place, xmax::text AS xid, xmax::text IN (
    SELECT transactionid::text FROM pg_locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock') AS told,
    since < statement_timestamp() - make_interval(secs => $2) AS old
FROM due WHERE xmax::text <> '0'"""
_FREE: Final = """\
SELECT tableoid::bigint AS part, ctid AS place FROM {t.rows} WHERE namespace = $1 AND ctid = ANY($2::tid[])
FOR UPDATE SKIP LOCKED"""
_OURS: Final = "SELECT coalesce(txid_current_if_assigned() & 4294967295, 0)::text"
_XMAX: Final = """\
SELECT tableoid::bigint AS part, ctid AS place, xmax::text AS xid FROM {t.rows}
WHERE namespace = $1 AND ctid = ANY($2::tid[]) AND xmax::text <> '0'"""
