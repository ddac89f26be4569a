"""One connection of a slot's worker: it peeks, and advances the slot behind what is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.cdc.rules.change import RowChange
from cachebus.consumers.cdc.rules.router import Table
from cachebus.consumers.cdc.slot import standing
from cachebus.consumers.cdc.slot.dead import TableOfDead
from cachebus.consumers.cdc.slot.held import HeldCommand, HeldCommands, HeldLetter
from cachebus.consumers.cdc.slot.lineage import places_of
from cachebus.consumers.cdc.slot.pgoutput import PgOutputError, Relation, Told
from cachebus.consumers.cdc.slot.reader import IDLE_ADVANCE_BYTES, LEAVE_OUT, TOO_LARGE, SlotReader
from cachebus.consumers.cdc.slot.shortcut import Shortcut, shortcut
from cachebus.consumers.cdc.slot.slot import literal
from cachebus.consumers.cdc.slot.standing import Standing
from cachebus.consumers.cdc.slot.storage import HELD, Swallowed
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import NOTHING, Batch, Finding, Item, Left, Look, Meaning, Session
from cachebus.producers.command import Command

if TYPE_CHECKING:
    from cachebus.consumers.cdc.slot.postgres import PostgresSource

CHANGED: Final = (b"U", b"D")
LESSENED: Final = (
    "old rows were told with less than its REPLICA IDENTITY for a while: it was altered in between, and what rules "
    "name by other columns is not told"
)
STAND_BY_S: Final = 0.5
WAYS: Final = 1000
STILL_S: Final = 15.0
"""If a worker has the slot's lock and does not use the slot for so long, the workers that stand by report it."""
TAKEN_S: Final = 5.0
"""How long others may use the slot before that is reported. After a worker is killed, its server process still does."""
UNSEEN_S: Final = 5.0
"""How long commits may stay invisible to other sessions before that is reported."""
UNSEEN: Final = (
    "commits are in the log that nobody sees: they wait for a synchronous standby. What they changed is let go of once "
    "they are seen; all else goes on, but the slot does not, so the server keeps WAL"
)
UNSEEN_REMEDY: Final = (
    "bring the standby back, or change synchronous_standby_names (who waits: "
    "SELECT pid, query FROM pg_stat_activity WHERE wait_event = 'SyncRep';)"
)


class _Way(NamedTuple):
    """How messages about a table are read."""

    relations: tuple[Relation, ...]
    table: Table
    short: Shortcut | None
    is_lessened: bool
    """Whether their old rows have less than the looks say."""


def _lacks(relation: Relation, table: Table) -> bool:
    """Whether old rows are told without what some rule makes names of, and the looks have."""
    lost = table.key.difference(column.name for column in relation.columns if column.key)
    return relation.identity != "f" and any(not lost.isdisjoint(rule.columns) for rule in table.rules)


def _changes(told: Told, table: Table, wanted: frozenset[str] | None = None) -> list[RowChange]:
    """The changes of a message, with what is known of old rows alone."""
    changes = told.changes(wanted)
    return [change.without_nulls() for change in changes] if table.is_uneven else changes


class SlotSession(Session):
    """A session with two connections. One has the lock, peeks and advances; the other does all else."""

    def __init__(self, source: PostgresSource, main: asyncpg.Connection, beside: asyncpg.Connection) -> None:
        self._source = source
        self._names = source.names
        self._reader = SlotReader(source, main)
        self._beside, self._in_beside = beside, asyncio.Lock()
        self._held = HeldCommands(beside, self._names.slot, source.shards, source.shard_of)
        self._dead = TableOfDead(beside, self._names.slot)
        self._found = Standing()
        self._losses = 0
        """Those that the last look may have seen. What was lost since is not made up for by what it has found."""
        self._hangs = False
        """Whether the last look had to be given up, since it waited for somebody."""
        self._is_outdated = True
        """Whether the last look was before this worker had the lock: what is remembered may be another's by now."""
        self._ways: dict[int, _Way] = {}
        """By `id` of what a message is about."""
        self._turn = False
        self._still: tuple[int, float] = (0, monotonic())

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[SlotSession]:
        """Keep the session and its slot from being idle, which the server would end, while this is entered."""
        keeping = asyncio.create_task(self._reader.keep(), name="cachebus-cdc-keep")
        try:
            yield self
        finally:
            self._source.leads(False)
            keeping.cancel()
            with suppress(asyncio.CancelledError, *self._source.trouble):
                await keeping

    # -- taking -------------------------------------------------------------------------------------------------------

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        items: list[Item] = []
        async with self._reader.lock:
            if await self._reader.leads():
                if self._is_outdated and not self._hangs:  # nothing is taken before it is known how all stands now
                    self.look_again = True
                    return Batch()
                await self._follow()
                items = await self._taken(limit, away)
            else:
                self._reader.pause_s = STAND_BY_S
        if not items and self._reader.pause_s:
            await asyncio.sleep(self._reader.pause_s)
        return Batch(items, full=not self._reader.pause_s)

    async def _follow(self) -> None:
        if not self._source.following:
            await self._reader.prepare()
            async with self._in_beside:
                await self._held.found()
            self._source.follows(True)

    async def _taken(self, limit: int, away: Collection[int]) -> list[Item]:
        self._reader.pause_s = 0.0
        if self._reader.peek is None:
            if self._found.quiet and not self._is_outdated:
                async with self._in_beside:
                    await self._source.mending.keep(self._beside, self._found)
            self._turn = not self._turn
            if self._turn and self._held.shards:
                async with self._in_beside:
                    held = await self._held.take(limit, away)
                if held:
                    return held
            if not await self._reader.begins(monotonic()):
                return []
        return await self._reader.some(limit)

    # -- letting go ---------------------------------------------------------------------------------------------------

    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """See `Session.acknowledge`."""
        if self._source.mending.has_new_doubts:  # stored before the slot goes behind what raised them
            async with self._in_beside:
                await self._source.mending.keep_doubts(self._beside)
        if isinstance(batch.items[0].raw, HeldCommand | HeldLetter):
            await self._acknowledge_held(batch, left)
            return
        if left.waiting:
            async with self._in_beside:
                await self._held.put(left.waiting)
        if left.not_set_aside:
            async with self._in_beside:
                await self._held.put_letters([one.letter for one in left.not_set_aside])
        undone = {id(item) for item in left.undone}
        first = next((item for item in batch.items if id(item) in undone), None)
        async with self._reader.lock:
            if first is not None:
                await self._reader.left(first)  # type: ignore[arg-type]
            else:
                await self._reader.done(batch.items[-1])  # type: ignore[arg-type]

    async def _acknowledge_held(self, batch: Batch, left: Left) -> None:
        kept = {id(item) for item in left.undone} | {id(one.item) for one in left.waiting}
        letters = [one for one in left.not_set_aside if isinstance(one.item.raw, HeldCommand)]
        kept |= {id(one.item) for one in left.not_set_aside if isinstance(one.item.raw, HeldLetter)}
        async with self._in_beside:
            moved = [one for one in left.waiting if one.shards != {one.item.raw.shard}]
            if moved:
                await self._held.put(moved)
            if letters:
                await self._held.put_letters([one.letter for one in letters])
            await self._held.acknowledge([item for item in batch.items if id(item) not in kept])

    # -- items --------------------------------------------------------------------------------------------------------

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        raw = item.raw
        if isinstance(raw, Told):
            return self._meaning(raw)
        if raw is None:
            return NOTHING
        if isinstance(raw, HeldCommand):
            return Meaning([raw.command])
        if isinstance(raw, HeldLetter):
            return Meaning((), [raw.letter.reason])
        raise PgOutputError(raw.problem)

    def _meaning(self, told: Told) -> Meaning:
        router = self._source.router
        tables = [router.table(one.schema, one.table, one.oid) for one in told.relations]
        way = self._way(tables[0], told)
        if way.is_lessened and told.data[:1] in CHANGED:
            self._source.mending.doubt(".".join(tables[0].place), LESSENED)
        if way.short is not None and (meaning := way.short.meaning(told)) is not None:
            return meaning
        changes = _changes(told, tables[0], tables[0].columns)
        if len(changes) == 1:
            return tables[0].meaning(changes[0])
        several = [table.meaning(change) for table, change in zip(tables, changes, strict=True)]
        commands = dict.fromkeys(command for one in several for command in one.commands)
        return Meaning(list(commands), [problem for one in several for problem in one.problems])

    def _way(self, table: Table, told: Told) -> _Way:
        """How messages like this one are read, found once a look, unless it falls under other rules by now."""
        known = self._ways.get(id(told.relations))
        if known is None or known.table is not table:
            if len(self._ways) >= WAYS:
                self._ways.clear()
            way = shortcut(table, told.relations[0]) if len(told.relations) == 1 else None
            lessened = _lacks(told.relations[0], table)
            known = self._ways[id(told.relations)] = _Way(told.relations, table, way, lessened)
        return known

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`."""
        raw = item.raw
        if isinstance(raw, HeldLetter):
            return raw.letter
        if isinstance(raw, HeldCommand):
            payload = raw.command.encode()
        else:
            try:
                payload = b"\n".join(change.payload() for change in self._changes_of(raw))
            except (PgOutputError, AttributeError):
                payload = repr(raw.data).encode()
        return DeadLetter(payload, reason, item.place, 1, wall_s())

    def _changes_of(self, told: Told) -> list[RowChange]:
        """The changes of a message, under the name by which rules are found when they are tried again."""
        first = told.relations[0]
        table = self._source.router.table(first.schema, first.table, first.oid)
        changes = _changes(told, table)
        if len(changes) > 1:
            return changes
        schema, name = table.place
        return [change._replace(schema=schema, table=name) for change in changes]

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.set_aside`."""
        async with self._in_beside:
            await self._dead.put(letters)

    # -- what is assumed ----------------------------------------------------------------------------------------------

    async def look(self) -> Look:
        """See `Session.look`."""
        async with self._in_beside:
            losses, leads = self._source.losses, self._source.leading
            try:
                found = self._found = await self._standing()
                self._losses, self._hangs, self._is_outdated = losses, False, not leads
            except standing.HANGS:
                if self._found.needs is None:  # nothing was ever seen
                    raise
                found = self._found = self._found.kept()
                self._hangs = True
            waits = not any(one.subject == HELD for one in found.findings)
            held, oldest_s = await self._held.figures() if waits and found.memory is not None else (0, 0.0)
        findings = list(found.findings)
        if found.slot is not None:
            self._source.stands(found.slot)
            findings += self._others(found.slot)
        self._source.warn(found.warnings)
        backlog = None
        if self._source.leading and found.slot is not None:
            here = found.slot.confirmed + found.slot.behind_bytes
            behind = min(found.slot.behind_bytes, self._reader.behind_bytes(here))
            backlog = held + self._source.changes_in(behind)
            mine_s = self._reader.oldest_s(wall_s())
            if mine_s is None and not held:
                return Look(findings, backlog, None, held=held)
            oldest_s = max(oldest_s, mine_s or 0.0)
        return Look(findings, backlog, oldest_s, held=held)

    async def _standing(self) -> Standing:
        source, mending = self._source, self._source.mending
        async with standing.briefly(self._beside):
            swallowing = await mending.look_at_suspects(self._beside)
            before = standing.Before(
                source.lineage, source.commits, mending.refused, mending.doubts, source.losses, swallowing
            )
            return await standing.look(self._beside, source.router, self._names, before)

    def _others(self, slot: Any) -> list[Finding]:
        """The findings about other sessions that use the slot, or that hold its lock and do not use it."""
        if self._source.leading:
            since_s = self._reader.passed.since_s
            if since_s is not None and monotonic() - since_s > UNSEEN_S:
                return [Finding("slot", self._names.slot, UNSEEN, UNSEEN_REMEDY)]
            if self._reader.too_large:
                problem = f"{TOO_LARGE}: {self._reader.too_large}. What is behind it waits"
                return [Finding("slot", self._names.slot, problem, self._ways_past(), missed=True)]
            if self._reader.in_use_s is not None and monotonic() - self._reader.in_use_s > TAKEN_S and slot.active_pid:
                who = f"another program reads it: {slot.active_as!r}, process {slot.active_pid}"
                return [Finding("slot", self._names.slot, who, f"SELECT pg_terminate_backend({slot.active_pid});")]
            return []
        confirmed, since_s = self._still
        if slot.confirmed != confirmed or slot.behind_bytes < IDLE_ADVANCE_BYTES:
            self._still = slot.confirmed, monotonic()
        unmoved = monotonic() - since_s > 4 * STILL_S and self._still[0] == confirmed
        if self._reader.waited_since_s is not None and (slot.untouched_s > STILL_S or unmoved):
            return [
                Finding(
                    "leader",
                    self._names.slot,
                    "another worker has the lock of the slot, and does nothing with it: it is "
                    "frozen, or all that it needs is out of reach",
                    "end the other worker",
                )
            ]
        return []

    def _ways_past(self) -> str:
        """What gets past a transaction that can't be told of."""
        advance = f"SELECT pg_replication_slot_advance({literal(self._names.slot)}, pg_current_wal_flush_lsn());"
        return (
            "name all tenants at the head of the rules: then it is passed by; or invalidate what it changed by hand, "
            f"and {advance} {LEAVE_OUT}"
        )

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """See `Session.mend`."""
        async with self._reader.lock:
            if self._hangs or not await self._reader.leads():
                return False
        made = self._is_outdated
        async with self._in_beside:
            with suppress(*standing.HANGS):
                if self._is_outdated:
                    self._found = await self._standing()
                for _ in range(5):  # one makes the next possible
                    try:
                        if not await self._source.mending.mend(self._beside, self._found):
                            break
                    except Swallowed as error:
                        self._source.mending.suspects.add(error.table)
                        await self._beside.reload_schema_state()  # prepared under a rule it stays nothing
                    made = True
                    self._found = await self._standing()
        return made

    def scopes(self, findings: Sequence[Finding]) -> tuple[list[Command], list[str]]:
        """See `Session.scopes`."""
        router = self._source.router
        rules: dict[int, Any] = {}
        for one in findings:
            places = places_of(one.subject)
            meant = [rule for place in places for rule in router.rules_of(*place)] if places else router.rules.rule
            rules |= {id(rule): rule for rule in meant}
        return router.missed(rules.values())

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        async with self._in_beside:
            if self._source.leading and not self._is_outdated:
                whole = self._losses == self._source.losses and not self._found.unseen
                await self._source.mending.made_up(self._beside, self._found, findings, whole=whole)
