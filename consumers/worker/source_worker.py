"""The loop of every worker: take a batch, apply it, set aside what can't be applied, and only then acknowledge it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from cachebus.base.clock import monotonic, wall_s
from cachebus.base.log import logger
from cachebus.cascade import Cascade
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.apply import PERMANENT, REFUSED, Applier, Carried
from cachebus.consumers.worker.chunk import Chunk, size_of
from cachebus.consumers.worker.clean import clean, describe
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.dead_letter_writer import PART, DeadLetterWriter
from cachebus.consumers.worker.retry import Retry
from cachebus.consumers.worker.source import Batch, Item, Left, NotSetAside, Session, Source
from cachebus.consumers.worker.watcher import Watcher
from cachebus.consumers.worker.worker import Worker
from cachebus.settings import Settings

NAMES_AT_ONCE: Final = 2000
"""Keys, scopes and tags that are planned before L2 is asked for them, while which the next are planned."""
WAITING_AT_ONCE: Final = 20_000
"""The most keys and scopes of a batch that may wait for a primary that is away: they take memory and time."""
YIELD_S: Final = 0.005
"""Planning yields to the event loop this often, so that health checks and heartbeats are not delayed."""
WITHOUT_L2_S: Final = 0.25
STOPPED_S: Final = 0.25


class SourceWorker(Worker):
    """Works on a source until drained. If it is killed, what it had not acknowledged comes again to the next worker.

    No item holds up another:

    1. What can't be applied becomes a dead letter, once all else of its batch was tried.
    2. If the letter can't be kept, the item rests where it is.
    3. What waits for one primary of several is kept apart.
    4. What L2 was too slow for is tried again in smaller batches.
    """

    def __init__(self, name: str, source: Source, settings: Settings, cascades: Iterable[Cascade] = ()) -> None:
        super().__init__(name, ("l2", source.part, PART, *source.assumptions))
        self.source = source
        self.settings = settings
        source.register(self.meters.registry)
        self._applier = Applier(settings, self.health, self.meters, cascades)
        source.identity = self._applier.identity
        self._hold_s = source.hold_s and max(source.hold_s, 1.25 * settings.l2_timeout_s)
        self._retry = Retry(source.part, self.health)
        self._dead_letters = DeadLetterWriter(name, source, self.health)
        self._watcher = Watcher(name, source, self._applier, self.health, self.meters)
        self._unexpected = ""
        """The last unexpected error: it is logged once."""
        self._limit = source.limit
        self._done = Counter[str]()
        """Items of the batch in hand, by outcome. They count once the batch is acknowledged."""
        self._in_hand = asyncio.Lock()
        """Held while a batch is in hand."""

    async def run(self) -> None:
        """Work until drained. Raises only errors that no waiting helps against, such as `ConfigError`."""
        store = asyncio.create_task(self._stay_connected(), name=f"cachebus-{self.name}-l2")
        work = asyncio.create_task(self._work(), name=f"cachebus-{self.name}")
        asked = asyncio.create_task(self._draining.wait(), name=f"cachebus-{self.name}-drain")
        try:
            await asyncio.wait((store, work, asked), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                async with self._in_hand:  # the batch in hand is the last one
                    work.cancel()
        finally:
            for task in (work, store, asked):  # in this order: the work needs L2
                task.cancel()
                await asyncio.wait((task,))
        for task in (store, work):
            if not task.cancelled():
                task.result()

    async def _stay_connected(self) -> None:
        """Stay connected to L2. Connecting takes as long as it takes; the source is opened meanwhile."""
        async with self._applier.opened():
            await asyncio.Event().wait()

    async def _work(self) -> None:
        while True:
            try:
                async with self.source.opened() as session:
                    await self._run_session(session)
            except PERMANENT:
                raise
            except self.source.trouble as error:
                await self._retry.wait(self.source.describe(error))
            except Exception as error:  # noqa: BLE001 -- whatever a driver raises, the next batch may pass
                self._limit = max(1, self._limit // 2)
                said = describe(error)
                if said != self._unexpected:
                    self._unexpected = said
                    logger.error("{}: unexpected, and tried again: {}", self.name, said, exception=error)
                await self._retry.wait(describe(error))

    async def _run_session(self, session: Session) -> None:
        await self._watcher.look(session)
        self.health.up(self.source.part)  # the back-off is reset only once a batch was taken, or the session lasts
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
            await asyncio.sleep(WITHOUT_L2_S)  # while L2 is away, items stay at the source
            return
        if self._watcher.stopped or self.draining:
            await asyncio.sleep(STOPPED_S)
            return
        batch = await session.take(self._limit, self._applier.away)
        self._retry.over()
        if session.look_again:
            session.look_again = False
            await self._watcher.look(session)
        if not batch.items:
            return
        async with self._in_hand:
            self._done.clear()
            self._dead_letters.begin_batch()
            left = await self._apply_batch(session, batch)
            await session.acknowledge(batch, left)
        self._done["dead"] += self._dead_letters.end_batch()
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
                self._dead_letters.check_recovery()
            except self.source.trouble as error:
                self.health.down(self.source.part, self.source.describe(error))  # now: the step may end much later
                raise
            self._retry.over()

    # -- a batch ------------------------------------------------------------------------------------------------------

    async def _apply_batch(self, session: Session, batch: Batch) -> Left:
        """Apply a batch, chunk by chunk; while L2 applies one, the next is planned. Returns what is left."""
        items, left, at = batch.items, Left(), 0
        until_s = float("inf") if self._hold_s is None else monotonic() + self._hold_s
        under_way: tuple[Chunk, asyncio.Task[Carried]] | None = None
        try:
            while at < len(items):
                began = at
                chunk, at = await self._next_chunk(session, items, at)
                if under_way is not None and await self._settled(session, *under_way, left):
                    under_way = None
                    left.undone += items[began:]
                    break
                within_s = None if self._hold_s is None else max(0.0, until_s - monotonic())
                under_way = chunk, asyncio.create_task(self._applier.carry(chunk.plans, within_s))
            if under_way is not None:
                await self._settled(session, *under_way, left)
        finally:
            if under_way is not None:
                under_way[1].cancel()
                await asyncio.gather(under_way[1], return_exceptions=True)
        return left

    async def _settled(self, session: Session, chunk: Chunk, carrying: asyncio.Task[Carried], left: Left) -> bool:
        """Wait for a chunk, set aside what can't be applied, and add what is left of it to `left`. Returns whether the
        rest of the batch is not to be tried."""
        carried = await carrying
        late = {chunk.of[place] for place in carried.late}
        undone = {id(chunk.items[of]) for of in late}
        for place, error in carried.failed.items():
            chunk.refuse(chunk.items[chunk.of[place]], describe(error))
        letters = [
            NotSetAside(item, self._letter(session, item, "; ".join(reasons)))
            for item, reasons in chunk.refused.values()
            if id(item) not in undone  # that comes again as a whole
        ]
        not_set_aside = await self._dead_letters.write(session, letters)
        left.not_set_aside += not_set_aside
        left.undone += [chunk.items[of] for of in sorted(late)]
        waiting = chunk.waiting(carried.away, late)
        left.waiting += waiting.values()
        failed = {chunk.of[place] for place in carried.failed}
        resting = {id(one.item) for one in not_set_aside}
        rest = {of for of, item in enumerate(chunk.items) if id(item) in resting} if resting else set()
        self._account(chunk, late.union(waiting, failed, rest))
        left.size += sum(size_of(chunk.plans[place]) for place in carried.away)
        return bool(late) or left.size > WAITING_AT_ONCE

    async def _next_chunk(self, session: Session, items: Sequence[Item], at: int) -> tuple[Chunk, int]:
        """The chunk of the items from `at` on, and where it ends."""
        chunk, held_s = Chunk(), monotonic()
        while at < len(items) and chunk.size < NAMES_AT_ONCE:
            self._add(session, items[at], chunk)
            at += 1
            if monotonic() - held_s > YIELD_S:
                await asyncio.sleep(0)
                held_s = monotonic()
        return chunk, at

    def _add(self, session: Session, item: Item, chunk: Chunk) -> None:
        """Plan an item, and add it to the chunk."""
        try:
            meaning = session.mean(item)
            found = self._applier.planned(meaning.commands)
        except REFUSED as error:
            chunk.refuse(item, str(error))
            return
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with one item, the next must not wait
            chunk.refuse(item, f"{type(error).__name__} while it was read")
            return
        if found.plans:
            chunk.add(item, found.commands, found.plans)
        if meaning.problems or found.problems:
            for problem in (*meaning.problems, *found.problems):
                chunk.refuse(item, problem)
        elif not found.plans:
            chunk.ignored += 1

    def _letter(self, session: Session, item: Item, why: str) -> DeadLetter:
        reason = clean(why)
        try:
            return session.letter(item, reason)
        except Exception as error:  # noqa: BLE001 -- as above
            return DeadLetter(b"", clean(f"{reason} ({type(error).__name__} while it was set aside)"), item.place, 1)

    def _account(self, chunk: Chunk, left: set[int]) -> None:
        applied, again, sent_s = chunk.counted(left)
        now_s = wall_s()
        for at_s, count in sent_s.items():
            self.meters.lag(max(0.0, now_s - at_s), count)
        self._done.update(applied=applied, again=again, ignored=chunk.ignored)
