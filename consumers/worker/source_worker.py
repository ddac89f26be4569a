"""The worker around any source: it takes, has L2 let go, sets aside what can't be used, and only then lets go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from loguru import logger

from cachebus.base.clock import monotonic, wall_s
from cachebus.cascade import Cascade
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.apply import HOPELESS, REFUSED, Applier, Carried
from cachebus.consumers.worker.burying import PART, Burial
from cachebus.consumers.worker.clean import clean, describe
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.patience import Patience
from cachebus.consumers.worker.reading import Reading, size_of
from cachebus.consumers.worker.source import Batch, Item, Left, Session, Source, Unburied
from cachebus.consumers.worker.watcher import Watcher
from cachebus.consumers.worker.worker import Worker
from cachebus.settings import Settings

NAMES_AT_ONCE: Final = 2000
"""Keys, scopes and tags that are planned before L2 is asked for them, while which the next are planned."""
WAITING_AT_ONCE: Final = 20_000
"""Of what waits for a primary that is away the source is given no more at a time: it takes memory, and time."""
YIELD_S: Final = 0.005
"""The loop is held no longer by reading: who asks how the worker is waits no longer than that, nor do heartbeats."""
WITHOUT_L2_S: Final = 0.25
STOPPED_S: Final = 0.25


class SourceWorker(Worker):
    """Works on a source, until drained. Killed anywhere, what it had not let go of comes again to whoever is there.

    No item holds up or ends anything: what can't be used is a dead letter, once all else of its batch was tried, and
    where no letter can be kept it rests where it is; what waits for one primary of several is kept apart; what L2 was
    too slow for is tried again in smaller batches.
    """

    def __init__(self, name: str, source: Source, settings: Settings, cascades: Iterable[Cascade] = ()) -> None:
        super().__init__(name, ("l2", source.part, PART, *source.assumptions))
        self.source = source
        self.settings = settings
        source.register(self.meters.registry)
        self._applier = Applier(settings, self.health, self.meters, cascades)
        source.identity = self._applier.identity
        self._hold_s = source.hold_s and max(source.hold_s, 1.25 * settings.l2_timeout_s)
        self._patience = Patience(source.part, self.health)
        self._burial = Burial(name, source, self.health)
        self._watcher = Watcher(name, source, self._applier, self.health, self.meters)
        self._unexpected = ""
        """The last error that nothing here knows, told once."""
        self._limit = source.limit
        self._done = Counter[str]()
        """By outcome: of the batch in hand, which counts when it was let go of."""
        self._in_hand = asyncio.Lock()
        """Held from before a batch is read until it is let go of."""

    async def run(self) -> None:
        """Work, until drained; raises only what no waiting helps against, such as `ConfigError`."""
        store = asyncio.create_task(self._hold_the_store(), name=f"cachebus-{self.name}-l2")
        work = asyncio.create_task(self._work(), name=f"cachebus-{self.name}")
        asked = asyncio.create_task(self._draining.wait(), name=f"cachebus-{self.name}-drain")
        try:
            await asyncio.wait((store, work, asked), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                async with self._in_hand:  # the batch under way is the last
                    work.cancel()
        finally:
            for task in (work, store, asked):  # in this order: the work needs the store
                task.cancel()
                await asyncio.wait((task,))
        for task in (store, work):
            if not task.cancelled():
                task.result()

    async def _hold_the_store(self) -> None:
        """Connect to L2, however long that takes, while the source is seen to as well."""
        async with self._applier.opened():
            await asyncio.Event().wait()

    async def _work(self) -> None:
        while True:
            try:
                async with self.source.opened() as session:
                    await self._sit(session)
            except HOPELESS:
                raise
            except self.source.trouble as error:
                await self._patience.wait(self.source.describe(error))
            except Exception as error:  # noqa: BLE001 -- whatever a driver does to us, the next batch may be another
                self._limit = max(1, self._limit // 2)
                said = describe(error)
                if said != self._unexpected:
                    self._unexpected = said
                    logger.opt(exception=error).error("{}: unexpected, and tried again: {}", self.name, said)
                await self._patience.wait(describe(error))

    async def _sit(self, session: Session) -> None:
        await self._watcher.look(session)
        self.health.up(self.source.part)  # its pauses begin anew only when it has given something, or lasts
        watching = asyncio.create_task(self._watch(session), name=f"cachebus-{self.name}-watch")
        try:
            while not watching.done():
                await self._step(session)
            watching.result()
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await watching

    async def _step(self, session: Session) -> None:
        if self._hold_s is not None and not self._applier.answers:
            await asyncio.sleep(WITHOUT_L2_S)  # items lie well where they are
            return
        if self._watcher.stopped or self.draining:
            await asyncio.sleep(STOPPED_S)
            return
        batch = await session.take(self._limit, self._applier.away)
        self._patience.over()
        if session.look_again:
            session.look_again = False
            await self._watcher.look(session)
        if not batch.items:
            return
        async with self._in_hand:
            self._done.clear()
            self._burial.begin()
            left = await self._carried(session, batch)
            await session.let_go(batch, left)
        self._done["dead"] += self._burial.over()
        for outcome, count in self._done.items():
            self.meters.done(outcome, count)
        self.meters.moved()
        slow = bool(left.undone)
        self._limit = max(1, self._limit // 2) if slow else min(self.source.limit, 2 * self._limit)

    async def _watch(self, session: Session) -> None:
        while True:
            await asyncio.sleep(watcher.LOOK_EVERY_S)
            try:
                await self._watcher.look(session)
                self._burial.look()
            except self.source.trouble as error:
                self.health.down(self.source.part, self.source.describe(error))  # at once: a step may take its time
                raise
            self._patience.over()

    # -- a batch ------------------------------------------------------------------------------------------------------

    async def _carried(self, session: Session, batch: Batch) -> Left:
        """Have L2 let go of what the batch asks for, some at a time, while the next is read; gives what is left."""
        items, left, at = batch.items, Left(), 0
        until_s = float("inf") if self._hold_s is None else monotonic() + self._hold_s
        under_way: tuple[Reading, asyncio.Task[Carried]] | None = None
        try:
            while at < len(items):
                began = at
                reading, at = await self._read(session, items, at)
                if under_way is not None and await self._settled(session, *under_way, left):
                    under_way = None
                    left.undone += items[began:]
                    break
                within_s = None if self._hold_s is None else max(0.0, until_s - monotonic())
                under_way = reading, asyncio.create_task(self._applier.carry(reading.plans, within_s))
            if under_way is not None:
                await self._settled(session, *under_way, left)
        finally:
            if under_way is not None:
                under_way[1].cancel()
                await asyncio.gather(under_way[1], return_exceptions=True)
        return left

    async def _settled(self, session: Session, reading: Reading, carrying: asyncio.Task[Carried], left: Left) -> bool:
        """What became of some of a batch goes into what is left of it, once what can't be used was set aside; whether
        no more of the batch is to be tried."""
        carried = await carrying
        late = {reading.of[place] for place in carried.late}
        undone = {id(reading.items[of]) for of in late}
        for place, error in carried.failed.items():
            reading.refuse(reading.items[reading.of[place]], describe(error))
        letters = [
            Unburied(item, self._letter(session, item, "; ".join(reasons)))
            for item, reasons in reading.refused.values()
            if id(item) not in undone  # it comes again, as a whole
        ]
        unburied = await self._burial.bury(session, letters)
        left.unburied += unburied
        left.undone += [reading.items[of] for of in sorted(late)]
        waiting = reading.waiting(carried.away, late)
        left.waiting += waiting.values()
        failed = {reading.of[place] for place in carried.failed}
        resting = {id(one.item) for one in unburied}
        rest = {of for of, item in enumerate(reading.items) if id(item) in resting} if resting else set()
        self._account(reading, late.union(waiting, failed, rest))
        left.size += sum(size_of(reading.plans[place]) for place in carried.away)
        return bool(late) or left.size > WAITING_AT_ONCE

    async def _read(self, session: Session, items: Sequence[Item], at: int) -> tuple[Reading, int]:
        """What the items from `at` on address, as many as go together; and where that ends."""
        reading, held_s = Reading(), monotonic()
        while at < len(items) and reading.size < NAMES_AT_ONCE:
            self._take(session, items[at], reading)
            at += 1
            if monotonic() - held_s > YIELD_S:
                await asyncio.sleep(0)
                held_s = monotonic()
        return reading, at

    def _take(self, session: Session, item: Item, reading: Reading) -> None:
        try:
            meaning = session.mean(item)
            found = self._applier.planned(meaning.commands)
        except REFUSED as error:
            reading.refuse(item, str(error))
            return
        except Exception as error:  # noqa: BLE001 -- whatever one item does to us, those behind it must not wait
            reading.refuse(item, f"{type(error).__name__} while it was read")
            return
        if found.plans:
            reading.add(item, found.commands, found.plans)
        if meaning.problems or found.problems:
            for problem in (*meaning.problems, *found.problems):
                reading.refuse(item, problem)
        elif not found.plans:
            reading.ignored += 1

    def _letter(self, session: Session, item: Item, why: str) -> DeadLetter:
        reason = clean(why)
        try:
            return session.letter(item, reason)
        except Exception as error:  # noqa: BLE001 -- as above
            return DeadLetter(b"", clean(f"{reason} ({type(error).__name__} while it was set aside)"), item.place, 1)

    def _account(self, reading: Reading, left: set[int]) -> None:
        applied, again, sent_s = reading.counted(left)
        now_s = wall_s()
        for at_s, count in sent_s.items():
            self.meters.lag(max(0.0, now_s - at_s), count)
        self._done.update(applied=applied, again=again, ignored=reading.ignored)
