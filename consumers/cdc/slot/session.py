"""One connection of a slot's worker: it peeks, and advances the slot behind what is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.cdc.rules.change import LONGEST_KEPT
from cachebus.consumers.cdc.slot import locks, own_tables, standing
from cachebus.consumers.cdc.slot.beside import Beside
from cachebus.consumers.cdc.slot.dead import TableOfDead
from cachebus.consumers.cdc.slot.figures import OwnFigures
from cachebus.consumers.cdc.slot.held import HeldCommand, HeldCommands, HeldLetter
from cachebus.consumers.cdc.slot.lineage import places_of
from cachebus.consumers.cdc.slot.meaning import Meanings
from cachebus.consumers.cdc.slot.others import OtherSessions
from cachebus.consumers.cdc.slot.pgoutput import PgOutputError, Told
from cachebus.consumers.cdc.slot.publication import is_of_all
from cachebus.consumers.cdc.slot.reader import SlotReader
from cachebus.consumers.cdc.slot.standing import SlotStanding
from cachebus.consumers.cdc.slot.storage import HELD, SLOTS, Swallowed
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import NOTHING, Batch, Finding, Item, Left, Look, Meaning, NotStored, Session
from cachebus.producers.command import Command, Resource

if TYPE_CHECKING:
    from cachebus.consumers.cdc.slot.postgres import PostgresSource

REMOVED: Final = "commands that were held there are gone: others have removed them, or an older state of them came back"
STAND_BY_S: Final = 0.5
ENDING_S: Final = 2.0
"""A session that has ended, of this worker itself for one, may have the lock for as long."""


class SlotSession(Session):
    """A session with two connections. One has the lock, peeks and advances; the other does all else."""

    def __init__(self, source: PostgresSource, main: asyncpg.Connection, beside: asyncpg.Connection) -> None:
        self._source = source
        self._names = source.names
        self._reader = SlotReader(source, main)
        self._beside, self._in_beside = beside, Beside(beside)
        self._held = HeldCommands(beside, self._names.slot, source.shards, source.shard_of)
        self._dead = TableOfDead(beside, self._names.slot)
        self._figures = OwnFigures(source, beside, self._held, self._dead)
        self._meanings = Meanings(source)
        self._found = SlotStanding()
        self._losses = 0
        """Those that the last look may have seen. What was lost since is not made up for by what it has found."""
        self._hangs = False
        """Whether the last look had to be given up, since it waited for somebody."""
        self._is_outdated = True
        """Whether the last look was before this worker had the lock: what is remembered may be another's by now."""
        self._has_owed = False
        """Whether that was stored of it which this worker does not tell."""
        self._ends_with: BaseException | None = None
        """Why the slot did not go behind the last batch."""
        self._turn = False
        self._others = OtherSessions(source, beside)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[SlotSession]:
        """Keep the session and its slot from being idle, which the server would end, while this is entered."""
        keeping = [asyncio.create_task(one.keep(), name="cachebus-cdc-keep") for one in (self._reader, self._in_beside)]
        try:
            yield self
        finally:
            self._source.leads(False)
            for one in keeping:
                one.cancel()
            await self._reader.stop()
            for one in keeping:
                with suppress(asyncio.CancelledError, *self._source.trouble):
                    await one

    # -- taking -------------------------------------------------------------------------------------------------------

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        if self._ends_with is not None:
            raise self._ends_with
        items: list[Item] = []
        async with self._reader.lock:
            if await self._reader.leads():
                if self._is_outdated and not self._hangs:  # nothing is taken before it is known how all stands now
                    self.look_again = True
                    return Batch(looked=False)
                await self._follow()
                await self._go_on_unseen()
                items = await self._taken(limit, away)
                looked = self._reader.has_looked
            else:
                self._reader.pause_s = STAND_BY_S
                looked = self._stands_by
        if not items and self._reader.pause_s:
            await asyncio.sleep(self._reader.pause_s)
        return Batch(items, full=not self._reader.pause_s, looked=looked)

    @property
    def _stands_by(self) -> bool:
        """Whether another worker has the slot, and not only an earlier session of this one, which ends."""
        return monotonic() - self._reader.waited_since_s > ENDING_S

    async def _follow(self) -> None:
        if not self._source.following:
            await self._reader.prepare()
            self._source.mending.began()
            async with self._in_beside:
                await self._held.found()
            self._source.follows(True)

    async def _go_on_unseen(self) -> None:
        """The catalogue hangs as this worker takes over: what it does not tell as the one before is owed first."""
        if self._is_outdated and not self._has_owed:
            async with self._in_beside, standing.briefly(self._beside):
                await self._source.mending.owe_others(self._beside, self._found, self._source.identity())
            self._has_owed = True

    async def _taken(self, limit: int, away: Collection[int]) -> list[Item]:
        self._reader.pause_s = 0.0
        if self._reader.peek is None:
            await self._store()
            self._turn = not self._turn
            if self._turn and self._held.is_due:
                async with self._in_beside:
                    held = await self._held.take(limit, away)
                if held:
                    return held
            if not await self._reader.begins(monotonic()):
                return []
        return await self._reader.some(limit)

    async def _store(self) -> None:
        """Store what is known of tables by now; later, while somebody has the row of the slot locked."""
        mending = self._source.mending
        is_quiet = not self._found.quiet or self._is_outdated
        if self._reader.rests or (is_quiet and not mending.has_new_doubts):
            return
        try:
            async with self._in_beside:
                if mending.has_new_doubts:
                    await mending.keep_doubts(self._beside)
                if not is_quiet:
                    await mending.keep(self._beside, self._found)
            self._reader.refusals.passed("store")
        except locks.LOCKED:
            self._reader.rest("store")

    # -- letting go ---------------------------------------------------------------------------------------------------

    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """See `Session.acknowledge`."""
        self._source.mending.applied(self._source.identity())
        if self._source.mending.has_new_doubts:
            await self._store()  # before the slot goes behind what raised them
        if isinstance(batch.items[0].raw, HeldCommand | HeldLetter):
            if self._source.mending.has_new_doubts:
                self._held.rest()  # they come again
            else:
                await self._acknowledge_held(batch, left)
            return
        self._reader.has_stored |= bool(left.waiting or left.not_set_aside)
        undone = {id(item) for item in left.undone} | await self._not_held(left)
        first = next((item for item in batch.items if id(item) in undone), None)
        async with self._reader.lock:
            try:
                if first is not None:
                    await self._reader.left(first)  # type: ignore[arg-type]
                else:
                    await self._reader.done(batch.items[-1])  # type: ignore[arg-type]
            except self._source.trouble as error:  # the slot stays; but what is done is not told again, and counts
                self._ends_with, self.not_noted = error, True

    async def _not_held(self, left: Left) -> set[int]:
        """Hold what waits; returns which items can't be held now, since a table is locked: they come again."""
        waiting, letters = left.waiting, left.not_set_aside
        try:
            async with self._in_beside:
                if waiting:
                    await self._held.put(waiting)
                if letters:
                    await self._held.put_letters([one.letter for one in letters])
            self._held.refusals.passed("hold")
        except locks.LOCKED:
            self._held_up("hold")
            return {id(one.item) for one in waiting} | {id(one.item) for one in letters}
        return set()

    async def _acknowledge_held(self, batch: Batch, left: Left) -> None:
        try:
            await self._let_go_of_held(batch, left)
            self._held.refusals.passed("let go")
        except locks.LOCKED:  # they come again
            self._held_up("let go")

    def _held_up(self, what: str) -> None:
        """Nothing was held: the table is locked, or rows in it, or the row of the slot, which has a sum of it. The next
        look says which."""
        self._held.locked(what)
        self._reader.refusals.waited = True

    async def _let_go_of_held(self, batch: Batch, left: Left) -> None:
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
            return self._meanings.of(raw)
        if raw is None:
            return NOTHING
        if isinstance(raw, HeldCommand):
            return Meaning([raw.command])
        if isinstance(raw, HeldLetter):
            return Meaning((), [raw.letter.reason])
        raise PgOutputError(raw.problem)

    def named(self, items: Sequence[Item]) -> Sequence[Resource]:
        """See `Session.named`."""
        return self._meanings.named(items)

    def origin(self, item: Item) -> str:
        """See `Session.origin`: the table."""
        return item.raw.relations[0].full_name if isinstance(item.raw, Told) else ""

    def reads(self, origin: str) -> bool:
        """See `Session.reads`: no, while it stands by."""
        return not self._stands_by

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`."""
        raw = item.raw
        if isinstance(raw, HeldLetter):
            return raw.letter
        if isinstance(raw, HeldCommand):
            payload = raw.command.encode()
        else:
            try:
                payload = b"\n".join(change.payload() for change in self._meanings.changes_of(raw))
            except (PgOutputError, AttributeError):
                payload = repr(raw.data[:LONGEST_KEPT]).encode()
        return DeadLetter(payload, reason, item.place, 1, wall_s())

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.set_aside`."""
        self._reader.has_stored = True
        async with self._in_beside:
            try:
                await self._dead.put(letters)
            except self._source.trouble as error:
                self.look_again |= self._source.mending.suspect(error)
                raise

    async def has_letters(self, within_s: float) -> bool | None:
        """See `Session.has_letters`."""
        if not self._figures.dead:
            return None if self._figures.dead is None else False
        async with self._in_beside:
            try:
                async with standing.briefly(self._beside):
                    return await self._dead.has_some(within_s)
            except standing.HANGS:
                return None

    # -- what is assumed ----------------------------------------------------------------------------------------------

    async def look(self) -> Look:
        """See `Session.look`."""
        async with self._in_beside:
            losses, leads = self._source.losses, self._source.leading
            try:
                found = self._found = await self._standing()
                self._losses, self._hangs, self._is_outdated = losses, False, not leads
            except standing.HANGS:
                locked = await locks.finding_of(self._beside, SLOTS, self._names.slot)
                if self._found.needs is None:  # nothing was ever seen
                    if locked is None:
                        raise
                    raise locks.TableLocked(locked) from None
                found = self._found = self._found.kept(locked)
                self._hangs = True
            figures, stuck = await self._figures.look(found, self._reader)
            if not self._hangs:
                await self._others.look(is_ours=self._found.is_of(self._names.namespace))
        findings = [*found.findings, *stuck]
        held, oldest_s, missing = figures
        if missing and self._source.leading:
            findings.append(Finding("storage", HELD, REMOVED, missed=True, over=True, state=str(missing)))
        warnings = list(found.warnings)
        if found.slot is not None:
            warnings += self._source.stands(found.slot)
            findings += self._others.findings(found.slot, self._reader, leads=self._source.leading)
        self._source.warn(found.warnings)
        if not self._source.leading:
            return Look(findings, None, oldest_s, held=held, warnings=warnings)
        slot, backlog = found.slot, None
        if slot is None or slot.lost:
            mine_s: float | None = monotonic() - self._source.all_done_s
        else:
            behind = min(slot.behind_bytes, self._reader.behind_bytes(slot.confirmed + slot.behind_bytes))
            backlog = held + self._source.changes_in(behind)
            mine_s = self._reader.oldest_s(wall_s())
            if mine_s == 0.0:
                self._source.all_done_s = monotonic()
            elif mine_s is None and not held:
                return Look(findings, backlog, None, held=held, warnings=warnings)
        return Look(findings, backlog, max(oldest_s, mine_s or 0.0), held=held, warnings=warnings)

    async def _standing(self) -> SlotStanding:
        source, mending = self._source, self._source.mending
        async with standing.briefly(self._beside):
            kept_out = await mending.look_at_suspects(self._beside)
            if self._is_outdated:
                source.writers.forget()
                source.commits.forget()
            of = source.lineage, source.commits, source.writers, mending.refused, mending.doubts, source.losses
            identity = source.identity()
            is_making, is_check = source.maker.is_under_way, source.checks_for is not None
            before = standing.Before(*of, is_making, identity, kept_out, is_check)
            found = await standing.look(self._beside, source.router, self._names, before)
            mending.looked(identity)
            if found.memory is not None:
                found.warnings += await own_tables.left_behind(self._beside, self._names.slot)
                found.warnings += await own_tables.with_triggers(self._beside)
        mending.saw(found)
        return found

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """See `Session.mend`."""
        if not self._found.is_of(self._names.namespace):
            return False  # nor is its lock taken, which the workers of that namespace need
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
                        self._source.mending.suspect(error)
                        await self._beside.reload_schema_state()  # prepared under a rule it stays nothing
                    made = True
                    self._found = await self._standing()
        return made

    def scopes(self, findings: Sequence[Finding]) -> list[Command]:
        """See `Session.scopes`."""
        router = self._source.router
        rules: dict[int, Any] = {}
        for one in findings:
            of_all = is_of_all(one, self._names)
            places = [] if of_all else places_of(one.subject)
            meant = router.rules.rule if of_all else [rule for place in places for rule in router.rules_of(*place)]
            rules |= {id(rule): rule for rule in meant}
        return router.missed(rules.values())

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        if not self._source.leading or self._is_outdated or self._reader.rests:  # who leads stores it, or does so later
            raise NotStored
        try:
            await self._made_up(findings)
            self._reader.refusals.passed("made up")
        except locks.LOCKED:  # the next look says who it is
            self._reader.rest("made up")
            raise NotStored from None

    async def _made_up(self, findings: Sequence[Finding]) -> None:
        async with self._in_beside:
            whole = self._losses == self._source.losses and not self._found.unseen
            self._source.mending.applied(self._source.identity())
            await self._source.mending.keep_unnamed(self._beside)
            await self._source.mending.made_up(self._beside, self._found, findings, whole=whole)
            for one in findings:
                if one.problem == REMOVED:
                    await self._held.made_up(int(one.state))
