"""The loop of every worker: take a batch, apply it, set aside what can't be applied, and only then acknowledge it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import anyio

from cachebus.base.clock import monotonic, wall_s
from cachebus.base.log import logger
from cachebus.cascade import Cascade
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.apply import PERMANENT, REFUSED, Applier, Carried
from cachebus.consumers.worker.chunk import Chunk
from cachebus.consumers.worker.clean import clean, describe
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.dead_letter_writer import PART, DeadLetterWriter
from cachebus.consumers.worker.in_a_row import ITEMS, InARow
from cachebus.consumers.worker.retry import Retry
from cachebus.consumers.worker.source import SENT_FROM_S, Batch, Item, Left, NotSetAside, Session, Source
from cachebus.consumers.worker.watcher import Watcher
from cachebus.consumers.worker.worker import Worker
from cachebus.producers.command import Resource
from cachebus.settings import Settings

NAMES_AT_ONCE: Final = 2000
"""Keys, scopes and tags that are planned before L2 is asked for them, while which the next are planned."""
WAITING_AT_ONCE: Final = 20_000
"""The most keys and scopes of a batch that may wait for a primary that is away: they take memory and time."""
NAMED_AT_ONCE: Final = 250
"""Items that are named and planned together, which takes less than a millisecond."""
ENTAILED_AT_ONCE: Final = 60
"""Keys and scopes that are planned together where items entail others, which takes as long."""
YIELD_S: Final = 0.0005
"""Planning yields to the event loop this often, so that nothing waits for it: neither L2, nor a health check."""
WITHOUT_L2_S: Final = 0.25
STOPPED_S: Final = 0.25
PATIENCE_MAX: Final = 16


class _UnderWay(NamedTuple):
    """A chunk that L2 is asked to apply."""

    chunk: Chunk
    carrying: asyncio.Task[Carried]


class SourceWorker(Worker):
    """Works on a source until drained. If it is killed, what it had not acknowledged comes again to the next worker.

    No item holds up another:

    1. What can't be applied becomes a dead letter, once all else of its batch was tried.
    2. If the letter can't be kept, the item rests where it is.
    3. What waits for one primary of several is kept apart.
    4. What L2 was too slow for is tried again in smaller batches.
    """

    def __init__(self, name: str, source: Source, settings: Settings, cascades: Iterable[Cascade] = ()) -> None:
        super().__init__(name, ("l2", source.part, PART, ITEMS, *source.assumptions))
        self.source = source
        self.settings = settings
        source.register(self.meters.registry)
        self._applier = Applier(settings, self.health, self.meters, cascades)
        source.identity = self._applier.identity
        self._hold_s = source.hold_s and max(source.hold_s, self._applier.patience_s)
        self._retry = Retry(source.part, self.health)
        self._dead_letters = DeadLetterWriter(name, source, self.health)
        self._in_a_row = InARow(name, source, self.health)
        self._watcher = Watcher(name, source, self._applier, self.health, self.meters)
        self._unexpected = ""
        """The last unexpected error: it is logged once."""
        self._limit = source.limit
        self._patience = 1
        """How many times longer than others a batch of one item may take: it can't be taken apart."""
        self._done = Counter[str]()
        """Items of the batch in hand, by outcome. They count once the batch is acknowledged."""
        self._sent_s = Counter[float]()
        """When those that are applied of it were sent, in Unix seconds."""
        self._aside: dict[int, str] = {}
        """Why those of it were set aside that were, by the `id` of the item."""
        self._ignored = set[int]()
        """Those of it that were ignored, likewise."""
        self._in_hand = asyncio.Lock()
        """Held while a batch is in hand."""
        self._owes = False
        """Whether a batch was applied whose acknowledgement has failed, or is under way. Until one succeeds, or the
        source was looked through and has nothing, it does not work, whatever else it answers."""
        self._in_vain = False
        """Whether the last `take` has failed, likewise: a session may begin without really taking."""

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
            with anyio.CancelScope(shield=True):  # who cancels does so over and over
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
        if self._watcher.stopped:  # what is wrong is found, and nothing is taken
            self._owes = self._in_vain = False
        if not self._owes and not self._in_vain:
            self.health.up(self.source.part)  # the back-off is reset only once a batch was done, or the session lasts
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
        try:
            batch = await session.take(self._limit, self._applier.away)
        except Exception:
            self._in_vain = True
            raise
        if batch.items or batch.looked:
            self._in_vain, self._owes = False, self._owes and bool(batch.items)
            self._works()
        if session.look_again:
            session.look_again = False
            await self._watcher.look(session)
        if not batch.items:
            if batch.looked:
                self._dead_letters.work_time.looked(through=True)
            self.meters.idles()
            return
        async with self._in_hand:
            self._done.clear()
            self._sent_s.clear()
            self._aside.clear()
            self._ignored.clear()
            self._dead_letters.begin_batch()
            self.meters.takes()
            left = await self._apply_batch(session, batch)
            self._owes = True
            await session.acknowledge(batch, left)
            self._owes = session.not_noted
        self._works()
        self._dead_letters.work_time.looked(through=not batch.full)
        self._done["dead"] += self._dead_letters.end_batch()
        for outcome, count in self._done.items():
            self.meters.done(outcome, count)
        now_s = wall_s()
        for at_s, count in self._sent_s.items():
            self.meters.lag(max(0.0, now_s - at_s), count)
        self.meters.moved()
        self._in_a_row.note(session, batch.items, self._aside, _open(left) | self._ignored)
        slow = bool(left.undone)
        self._patience = min(PATIENCE_MAX, 2 * self._patience) if slow and len(batch.items) == 1 else 1
        self._limit = max(1, self._limit // 2) if slow else min(self.source.limit, 2 * self._limit)

    async def _watch(self, session: Session) -> None:
        while True:
            await asyncio.sleep(watcher.LOOK_EVERY_S)
            try:
                await self._watcher.look(session)
                self._dead_letters.check_recovery()
                await self._in_a_row.look(session)
            except self.source.trouble as error:
                self.health.down(self.source.part, self.source.describe(error))  # now: the step may end much later
                raise
            self._works()

    def _works(self) -> None:
        """Note that the source works, unless it takes no acknowledgement, or gives nothing."""
        if not self._owes and not self._in_vain:
            self._retry.succeeded()

    # -- a batch ------------------------------------------------------------------------------------------------------

    async def _apply_batch(self, session: Session, batch: Batch) -> Left:
        """Apply a batch, chunk by chunk; while L2 applies one, the next is planned. Returns what is left."""
        items, left, at = batch.items, Left(), 0
        until_s = float("inf") if self._hold_s is None else monotonic() + self._hold_s * self._patience
        under_way: _UnderWay | None = None
        try:
            while at < len(items):
                began = at
                chunk, at = await self._next_chunk(session, items, at)
                if under_way is not None and await self._settled(session, under_way, left):
                    under_way = None
                    left.undone += items[began:]
                    break
                within_s = None if self._hold_s is None else max(0.0, until_s - monotonic())
                under_way = _UnderWay(chunk, asyncio.create_task(self._applier.carry(chunk.plans, within_s)))
            if under_way is not None:
                await self._settled(session, under_way, left)
        finally:
            if under_way is not None:
                under_way.carrying.cancel()
                await asyncio.gather(under_way.carrying, return_exceptions=True)
        return left

    async def _settled(self, session: Session, under_way: _UnderWay, left: Left) -> bool:
        """Wait for a chunk, set aside what can't be applied, and add what is left of it to `left`. Returns whether the
        rest of the batch is not to be tried."""
        settled = under_way.chunk.settled(await under_way.carrying)
        letters = [
            NotSetAside(item, self._letter(session, item, "; ".join(reasons))) for item, reasons in settled.refused
        ]
        not_set_aside = await self._dead_letters.write(session, letters)
        left.not_set_aside += not_set_aside
        left.undone += settled.undone
        left.waiting += settled.waiting
        left.size += settled.waiting_size
        resting = {id(one.item) for one in not_set_aside}
        self._aside |= {id(one.item): one.letter.reason for one in letters if id(one.item) not in resting}
        self._count_applied([item for item in settled.applied if id(item) not in resting])
        self._ignored.update(map(id, under_way.chunk.ignored))
        self._done["ignored"] += len(under_way.chunk.ignored)
        return bool(settled.undone) or left.size > WAITING_AT_ONCE

    async def _next_chunk(self, session: Session, items: Sequence[Item], at: int) -> tuple[Chunk, int]:
        """The chunk of the items from `at` on, and where it ends."""
        chunk, held_s = Chunk(), monotonic()
        while at < len(items) and chunk.size < NAMES_AT_ONCE:
            named = self._named(session, items[at : at + 1])
            if named:
                size = self._applier.size_of(named[0])
                most = NAMED_AT_ONCE if size == 1 else max(1, ENTAILED_AT_ONCE // size)
                room = min(most, -((chunk.size - NAMES_AT_ONCE) // (1 + size)))
                named = self._named(session, items[at : at + room])
            some = items[at : at + (len(named) or 1)]
            if plans := self._applier.plans_of(named):
                chunk.extend(some, named, plans)
            else:
                for item in some:
                    self._add(session, item, chunk)
            at += len(some)
            if monotonic() - held_s > YIELD_S:
                await asyncio.sleep(0)
                held_s = monotonic()
        return chunk, at

    def _named(self, session: Session, items: Sequence[Item]) -> Sequence[Resource]:
        try:
            return session.named(items)
        except Exception:  # noqa: BLE001 -- each is read by itself then, and the one that is wrong is refused
            return ()

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
            chunk.ignored.append(item)

    def _letter(self, session: Session, item: Item, why: str) -> DeadLetter:
        reason = clean(why)
        try:
            return session.letter(item, reason)
        except Exception as error:  # noqa: BLE001 -- as above
            return DeadLetter(b"", clean(f"{reason} ({type(error).__name__} while it was set aside)"), item.place, 1)

    def _count_applied(self, items: Sequence[Item]) -> None:
        """Count items that are applied, for the first time or again, and when they were sent."""
        again = sum(item.again for item in items)
        self._done.update(applied=len(items) - again, again=again)
        self._sent_s.update(item.sent_s for item in items if item.sent_s is not None and item.sent_s > SENT_FROM_S)


def _open(left: Left) -> set[int]:
    """The items of a batch that are not done with, by their `id`."""
    items = (*left.undone, *(one.item for one in left.waiting), *(one.item for one in left.not_set_aside))
    return set(map(id, items))
