"""Relays show each other, by advisory locks of PostgreSQL, which table and namespace they serve, for which L2, and by
which cascades. The rows of a table and namespace are taken for one L2 alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from cachebus.consumers.outbox.memory import Memories, OutboxMemory
from cachebus.consumers.worker.source import AGREE_LOOKS, Finding
from cachebus.consumers.worker.transactions import joined, workers_named
from cachebus.producers.outbox.table import OutboxTable

LOCK: Final = 0x0B0C
"""The advisory lock that every relay holds, with the hash of its namespace and of the table's place."""
SERVES: Final = "cachebus l2"
TAKES: Final = "cachebus l2 takes"
FOLLOWS: Final = "cachebus cascades"
"""Kinds of locks: which L2 a relay is for, for which it takes rows, and which cascades it follows."""
NONE: Final = "none"
"""What a relay shows that follows no cascades."""
SEEN: Final = "seen"
REMEMBERED: Final = "remembered"
UNKNOWN: Final = "?"
"""What a relay shows that can't know yet which L2 it has: others take it for one of another L2."""


async def serve(connection: asyncpg.Connection, table: OutboxTable, namespace: str, before: str, *, shown: bool) -> str:
    """Show others, by a lock, that a relay serves the namespace and the table, unless it is not to be `shown`; returns
    the place by which they find it."""
    try:
        place: str = await connection.fetchval(_PLACE, table.rows) or ""
    except asyncpg.InsufficientPrivilegeError:  # its schema may not be used: `standing.findings` says so
        return before
    if place != before and shown:
        if before:
            await connection.execute(_LEAVE, LOCK, f"{namespace} {before}")
        if place:
            await connection.execute(_SERVE, LOCK, f"{namespace} {place}")
    return place


def is_served(served: str) -> str:
    """SQL: a relay serves what the expression gives, the namespace and the place, with a space between them."""
    return _IS_SERVED.format(served=served)


class RelaysElsewhere:
    """What a relay knows, over all connections, of relays that work for another L2."""

    def __init__(self) -> None:
        self.sessions: set[int] = set()
        """Their sessions in the database, of those that take rows."""
        self.gone = 0
        """How many have gone, whose rows were applied where no cache of ours is."""
        self.made_up = 0
        """For how many of these that is made up for."""
        self.ours: set[str] = set()
        """For which L2s this relay has taken rows, as far as it knew: a process does not change its URL, so a failover
        did."""
        self.follows: str | None = None
        """What tells the cascades of this relay from others, as `Source.followed`; None of a check, which may be of
        cascades that are to come."""
        self.calm_looks = AGREE_LOOKS
        """In how many checks in a row no other relay was there that takes rows for another L2."""

    @property
    def calm(self) -> bool:
        """Whether such relays have gone for good: after a restart of the database they are back at once, or soon."""
        return self.calm_looks >= AGREE_LOOKS


class Stores:
    """Shows by locks which L2 the relay of a connection is for, and whether it takes rows. Of relays for different L2s
    those that come later take none."""

    def __init__(
        self, connection: asyncpg.Connection, table: OutboxTable, memories: Memories, strangers: RelaysElsewhere
    ) -> None:
        self._connection = connection
        self._table = table
        self._memories = memories
        self._strangers = strangers
        self._held: dict[str, tuple[str, str]] = {}
        """What is shown by a lock of each kind."""
        self._looks = 0
        self._others_row = 0
        """In how many checks in a row the database remembered another L2 than that for which rows are taken."""
        self._unlike_row = 0
        """In how many checks in a row another relay followed other cascades."""

    def takes(self, served: str, identity: str) -> bool:
        """Whether the relay takes rows of this for this L2."""
        return self._held.get(TAKES) == (served, identity or UNKNOWN)

    async def may_take(self, served: str, identity: str, oid: int | None) -> bool:
        """Whether rows may be taken of what is `served` (the namespace and the table's place), from the table of this
        number: if no other relay takes them for another L2. The lock that tells of it, and what the database remembers,
        are there before this returns.

        A relay that can't know yet which L2 it has, since one of its primaries is away, takes rows where no other one
        does, and asks before each take; what it takes counts as missed.
        """
        shown = identity or UNKNOWN
        async with self._connection.transaction():  # one relay after the other
            await self._connection.execute(_ONE, served)
            if identity:
                await self._show(SERVES, served, identity)
            if await self._takers_elsewhere(served, identity):
                self._strangers.calm_looks = 0
            if not self._strangers.calm:
                await self._hide(TAKES)
                return False
            await self._remember(identity, oid)  # first: whoever shows that he takes rows is not asked again
            await self._show(TAKES, served, shown)
        if identity:
            self._strangers.ours.add(identity)
        return True

    async def _remember(self, identity: str, oid: int | None = None) -> None:
        """Have the database remember that rows are taken for this L2 from now on."""
        if not self._memories.usable:
            return
        known, before = self._strangers, await self._memories.read()
        l2, oid_before, missed = before or (identity, 0, 0)
        if known.gone > known.made_up or l2 not in (identity, *known.ours):
            missed += 1
        memory, gone = OutboxMemory(identity, oid or oid_before, missed), known.gone
        if memory == before or await self._memories.write(memory):
            known.made_up = gone

    async def _show(self, kind: str, served: str, identity: str) -> None:
        before = self._held.get(kind, ("", ""))
        if before != (served, identity):
            await self._connection.execute(_SHOW, kind, served, identity)
            self._held[kind] = served, identity
            if before[1]:  # only now: who looks in between must not take this one for gone
                await self._connection.execute(_HIDE, kind, *before)

    async def _hide(self, kind: str) -> None:
        if kind in self._held:
            await self._connection.execute(_HIDE, kind, *self._held.pop(kind))

    async def _takers_elsewhere(self, served: str, identity: str) -> bool:
        relays = await self._relays(TAKES, served, identity)
        ours = {row["pid"] for row in relays if row["ours"] or row["mine"]}
        return any(row["pid"] not in ours for row in relays)

    async def _relays(self, kind: str, served: str, identity: str) -> Sequence[Any]:
        ours = [one for one in (identity, *self._strangers.ours) if one]
        found: Sequence[Any] = await self._connection.fetch(_RELAYS, kind, served, ours)
        return found

    async def findings(self, served: str, identity: str) -> list[Finding]:
        """The finding that another relay of what is `served` is for another L2, in several checks in a row: a failover
        changes the identities of relays one after the other. And the finding that such a relay has taken rows, and has
        gone, so that what it has applied is missed here."""
        unlike = await self._of_cascades(served)
        if identity:
            await self._show(SERVES, served, identity)
        relays = await self._relays(SERVES, served, identity)
        several = len({row["store"] for row in relays}) > 1
        self._looks = self._looks + 1 if several else 0
        missed = [*unlike, *await self._missed(served, identity)]
        stops = not self._strangers.calm
        if not stops and self._looks < AGREE_LOOKS and (identity or not several):
            return missed
        problem = "relays of this table and namespace work for different servers: those that came later take nothing"
        who, ends = workers_named([row for row in relays if not row["mine"] and not row["ours"]])
        remedy = (
            "give all of them the same CACHEBUS_URL, that of the caches. Where the wrong ones came first, the others "
            "take over once these have gone, and let go of what they have applied elsewhere"
        )
        if who:
            problem, remedy = f"{problem} ({who})", joined([remedy, ends])
        return [*missed, Finding("stores", self._table.rows, problem, remedy, stops=stops)]

    async def _of_cascades(self, served: str) -> list[Finding]:
        """The finding that another relay follows other cascades, in several checks in a row: a deployment replaces
        relays one after the other."""
        if self._strangers.follows is None:
            return []
        ours = self._strangers.follows or NONE
        await self._show(FOLLOWS, served, ours)
        relays = await self._connection.fetch(_RELAYS, FOLLOWS, served, [ours])
        others = [row for row in relays if not row["mine"] and not row["ours"]]
        self._unlike_row = self._unlike_row + 1 if others else 0
        if self._unlike_row < AGREE_LOOKS:
            return []
        who, ends = workers_named(others)
        problem = f"relays follow other cascades: what is invalidated besides depends on who takes the row ({who})"
        remedy = (
            "give all of them the same (--cascades), and let go of what those have left out: `cachebus invalidate TYPE "
            "--all-tenants` for each type that cascades reach"
        )
        subject = f"{self._table.rows}, relays with other cascades"
        return [Finding("stores", subject, problem, joined([remedy, ends]))]

    async def _missed(self, served: str, identity: str) -> list[Finding]:
        known, relays = self._strangers, await self._relays(TAKES, served, identity)
        ours = {row["pid"] for row in relays if row["ours"] or row["mine"]}
        others = {row["pid"] for row in relays} - ours
        known.gone += len(known.sessions - ours - others)
        known.sessions = others
        if not known.calm:
            known.calm_looks = 0 if others else known.calm_looks + 1
        if not identity:
            return []  # what it misses it does not know
        problem = "a relay that worked for another server has gone: what it has applied there is missed here"
        subject = f"{self._table.rows}, relays for another server"
        finding = Finding("stores", subject, problem, missed=True, over=True)
        if self._memories.usable:
            memory = await self._memories.read()
            if self.takes(served, identity) and self._must_remember(memory, identity):
                await self._remember(identity)
                memory = await self._memories.read()
            missed = memory.missed if memory is not None and memory.l2 == identity else 0
            return [finding._replace(state=f"{REMEMBERED} {missed}")] if missed else []
        return [finding._replace(state=f"{SEEN} {known.gone}")] if known.gone > known.made_up else []

    def _must_remember(self, memory: OutboxMemory | None, identity: str) -> bool:
        """Whether the database does not remember for which L2 rows are taken, as its table was made, or restored, after
        the first take. After a failover another relay may remember the next identity before this one knows it."""
        if memory is None or not memory.l2:  # of one that could not know
            return True
        self._others_row = self._others_row + 1 if memory.l2 != identity else 0
        return self._others_row >= AGREE_LOOKS

    async def made_up(self, finding: Finding) -> None:
        """What was missed by this finding is made up for."""
        kind, _, number = finding.state.partition(" ")
        if kind == SEEN:
            self._strangers.made_up = int(number)
        else:
            await self._memories.made_up(int(number))


_PLACE: Final = """\
SELECT relnamespace::regnamespace || '.' || quote_ident(relname) FROM pg_class WHERE oid = to_regclass($1)"""
_SERVE: Final = "SELECT pg_try_advisory_lock_shared($1::int, hashtext($2))"
_LEAVE: Final = "SELECT pg_advisory_unlock_shared($1::int, hashtext($2))"
_ONE: Final = "SELECT pg_advisory_xact_lock(hashtext('cachebus takers'), hashtext($1))"
_SHOW: Final = "SELECT pg_try_advisory_lock_shared(hashtext($1 || ' ' || $2), hashtext($3))"
_HIDE: Final = "SELECT pg_advisory_unlock_shared(hashtext($1 || ' ' || $2), hashtext($3))"
_RELAYS: Final = """\
SELECT l.pid, l.pid = pg_backend_pid() AS mine, host(a.client_addr) AS host, objid::bigint AS store,
    objid::bigint IN (SELECT hashtext(l2)::bigint & 4294967295 FROM unnest($3::text[]) AS l2) AS ours
FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) WHERE locktype = 'advisory' AND objsubid = 2 AND granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint = (hashtext($1 || ' ' || $2)::bigint & 4294967295)"""
_IS_SERVED: Final = f"""\
EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint = {LOCK} AND objid::bigint = (hashtext({{served}})::bigint & 4294967295))"""
