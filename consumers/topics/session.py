"""One connection of a worker to its consumer group: what it takes, and what it commits."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    IllegalStateError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from cachebus.base.clock import monotonic, wall_s
from cachebus.base.log import logger
from cachebus.consumers.topics.brokers import EARLIEST, BrokerAdmin, Topic
from cachebus.consumers.topics.commits import MOVED_ON, Committer, assignment_of
from cachebus.consumers.topics.held import HeldMessage
from cachebus.consumers.topics.inspection import TopicInspector
from cachebus.consumers.topics.note import StartOffset, begin_at
from cachebus.consumers.topics.progress import AssignmentProgress, place_of
from cachebus.consumers.topics.reading import TopicReader
from cachebus.consumers.topics.replay import has_letters
from cachebus.consumers.topics.unreadable import UnreadableSpan
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import POLL_S, Batch, Finding, Item, Left, Look, Meaning, Session
from cachebus.producers.command import Command, InvalidCommand
from cachebus.resp import ended

if TYPE_CHECKING:
    from cachebus.consumers.topics.source import TopicSource

GET_S: Final = 2.0
"""How long the driver may take beyond its own time-out. During a rebalance it waits for the end of that."""
UNBEGUN_EVERY_S: Final = 0.5
"""How often leaders that did not tell where their partitions begin are asked again."""
JOIN_S: Final = 0.01
"""How often it looks for an assignment while there is none."""


class TopicSession(Session):
    """See `Session`. It joins the group with the first `take`."""

    def __init__(self, source: TopicSource, brokers: BrokerAdmin, consumer: AIOKafkaConsumer) -> None:
        self.source = source
        self.consumer = consumer
        self.brokers = brokers
        self.progress: AssignmentProgress | None = None
        self._carried: AssignmentProgress | None = None
        """The progress that the batch in hand belongs to."""
        self.in_hand: Sequence[Item] = ()
        self._idle = asyncio.Event()
        self._idle.set()
        self._taking = False
        """Whether some may be taken of which nothing else knows yet: what lies behind them is not committed then."""
        self.commits = Committer(consumer, source.identities)
        self._reader = TopicReader(source, consumer)
        self._cut = set[TopicPartition]()
        self._unbegun_from_s = 0.0
        self._asking: asyncio.Task[dict[TopicPartition, StartOffset]] | None = None
        """Asks where those partitions begin of which nobody has told it yet."""
        self._inspector = TopicInspector(self)

    # -- taking -------------------------------------------------------------------------------------------------------

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        progress = await self._current()
        if progress is None:
            await asyncio.sleep(JOIN_S)
            return Batch()
        self._taking = True
        try:
            items = await self._taken(progress, limit, away)
            if items:
                self._carried, self.in_hand = progress, items
                self._idle.clear()
        finally:
            self._taking = False
        if not items and progress is self.progress:
            await self.commits.commit(progress)  # the position may have passed what is no message
        return Batch(items, len(items) >= limit)

    async def _taken(self, progress: AssignmentProgress, limit: int, away: Collection[int]) -> list[Item]:
        """What was undone, what was held, and what is new, in this order."""
        items = [progress.undone.popleft() for _ in range(min(limit, len(progress.undone)))]
        given = progress.held.give(limit - len(items), away)
        items += [Item(place_of(one.record), one, one.sent_s, one.again) for one in given]
        with suppress(IllegalStateError):
            for partition, offset in progress.held.to_read_again().items():
                self.consumer.seek(partition, offset)
                progress.taken[partition] = offset
        if len(items) < limit:
            items += await self._new(progress, limit - len(items), 0.0 if items else POLL_S)
        return items

    async def _current(self) -> AssignmentProgress | None:
        """The progress of the current assignment; None where there is none yet."""
        if not self.joined:
            await self.source.make_topics()
            self.consumer.subscribe(**self.source.subscription, listener=_RebalanceListener(self))
        assignment = self._assignment()
        if assignment is None:
            self.consumer._coordinator.check_errors()
        elif self.progress is None or self.progress.assignment is not assignment:
            self.progress = None
            self.progress = await self._begun(assignment)
            if self.progress is not None:
                await self.commits.commit(self.progress)
        elif self.progress.unbegun and monotonic() >= self._unbegun_from_s:
            self._begin_rest(self.progress)
        return self.progress

    @property
    def joined(self) -> bool:
        """Whether it is in the group, or is about to join."""
        return bool(self.consumer._subscription.listener)

    def _assignment(self) -> Any:
        return assignment_of(self.consumer)

    async def _begun(self, assignment: Any) -> AssignmentProgress | None:
        """Begin an assignment: find where to read each of its partitions from. None if another rebalance came first."""
        await self.aclose()
        await self.commits.committed()
        names = {partition.topic for partition in assignment.tps}
        topics = await self.brokers.topics(names) if names else {}
        begins = await self._begins(topics, assignment.tps) if names else {}
        if self._assignment() is not assignment:
            return None
        gone = {one.topic for one, begin in begins.items() if begin.missed}  # it is noted first
        self.source.identities.took({name: one.identity for name, one in topics.items() if name not in gone})
        logger.info("{}: reads {} partitions of {} topics", self.source.name, len(assignment.tps), len(names))
        notes = {name: self.source.note_of(topic) for name, topic in topics.items()}
        progress = AssignmentProgress(assignment, begins, notes)
        self._goes_on(progress, begins)
        return progress

    def _begin_rest(self, progress: AssignmentProgress) -> None:
        """Ask again where partitions begin whose leader did not tell, as one that has just moved, or hangs. The others
        are read meanwhile."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._begins_of(progress.unbegun), name="cachebus-topics-begin")
        elif self._asking.done():
            asked, self._asking = self._asking, None
            self._unbegun_from_s = monotonic() + UNBEGUN_EVERY_S
            begins = asked.result()
            progress.begin(begins)
            self._goes_on(progress, begins)

    async def _begins_of(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, StartOffset]:
        return await self._begins(await self.brokers.topics({one.topic for one in partitions}), partitions)

    async def aclose(self) -> None:
        """End what it asks."""
        await ended(self._asking)
        self._asking = None

    def _goes_on(self, progress: AssignmentProgress, begins: Mapping[TopicPartition, StartOffset]) -> None:
        """Have the driver read these partitions from where they begin. All others are paused: the driver would read
        them from what is committed, and nothing of that would ever be committed."""
        self._cut -= begins.keys()
        self.commits.is_unkept = True
        for partition, begin in begins.items():
            self.consumer.seek(partition, begin.offset)
            if begin.missed:
                self.source.cut.inc()
                self.look_again = True
        self.consumer.resume(*self.consumer.paused() & begins.keys())
        for partition in progress.unbegun:
            self.consumer.seek(partition, 0)  # any offset: without one the driver asks by itself, and may raise
        self.consumer.pause(*progress.unbegun)
        self._unbegun_from_s = monotonic() + UNBEGUN_EVERY_S

    async def _begins(
        self, topics: Mapping[str, Topic], partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, StartOffset]:
        """Where these partitions begin, as far as their leaders tell."""
        committed = await self.brokers.committed(self.source.membership.group)
        first = await self.brokers.offsets(topics, partitions, EARLIEST)
        known = self.source.identities
        known.found(committed)
        begins: dict[TopicPartition, StartOffset] = {}
        for one in partitions & first.keys():
            begins[one] = begin_at(
                committed.get(one),
                first[one],
                self.source.note_of(topics[one.topic]),
                known.before(one.topic, topics[one.topic].identity),
                cut=one in self._cut,
            )
        return begins

    async def _new(self, progress: AssignmentProgress, limit: int, wait_s: float) -> list[Item]:
        """New messages."""
        try:
            if progress.broken:
                return await self._reader.one_by_one(progress, limit)
            async with asyncio.timeout(wait_s + GET_S):
                found = await self.consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=limit)
            return self._reader.taken(progress, found)
        except (NoOffsetForPartitionError, OffsetOutOfRangeError) as error:
            (named,) = error.args  # one, or a mapping from several to offsets
            if isinstance(error, OffsetOutOfRangeError):
                self._cut |= set(named)
            self.progress = None
        except (TopicAuthorizationFailedError, *MOVED_ON):  # a check reports the first
            await asyncio.sleep(POLL_S)
        except TimeoutError:
            if self._assignment() is progress.assignment and not self.consumer._subscription.reassignment_in_progress:
                raise
        except Exception as error:  # noqa: BLE001 -- raised again, unless a message is to blame
            self._reader.broke(progress, error)
        return []

    # -- what items mean, and acknowledging ---------------------------------------------------------------------------

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        kind = type(item.raw)
        if kind is HeldMessage:
            letter = item.raw.letter
            return Meaning(item.raw.commands, [] if letter is None else [letter.reason])
        if kind is UnreadableSpan:
            raise InvalidCommand(item.raw.reason)
        return self.source.mean(item)

    def origin(self, item: Item) -> str:
        """See `Session.origin`."""
        return self.source.origin(item.place.rpartition("@")[0])

    def reads(self, origin: str) -> bool:
        """See `Session.reads`: whether it has the partition, once it has any."""
        if self.progress is None:
            return True
        return any(self.source.origin(f"{one.topic}/{one.partition}") == origin for one in self.progress.assignment.tps)

    async def has_letters(self, within_s: float) -> bool | None:
        """See `Session.has_letters`. A replay goes through all of them, so it is told whether it came to the last."""
        return await has_letters(self.source.membership, self.brokers)

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`."""
        if isinstance(item.raw, HeldMessage) and item.raw.letter is not None:
            return item.raw.letter
        if isinstance(item.raw, UnreadableSpan):
            return DeadLetter(b"", reason, item.place, 1, wall_s())
        return self.source.letter(item.raw.record if isinstance(item.raw, HeldMessage) else item.raw, reason)

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.set_aside`."""
        await self.source.dead.put(letters)

    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """See `Session.acknowledge`. Each partition is committed up to its first message that is held. After a
        rebalance nothing is committed."""
        progress = self._carried
        try:
            if progress is None:
                return
            for one, taken in progress.taken.items():
                self.source.before[progress.identity(one.topic), one] = taken
            if progress is self.progress and self._assignment() is progress.assignment:
                await progress.acknowledge(left)
                await self.commits.commit(progress)
        finally:
            self._carried, self.in_hand = None, ()
            self._idle.set()

    async def hand_over(self) -> None:
        """Before other workers get the partitions: wait until the batch in hand is applied and committed, for as long
        as the group waits. They read again what is held."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.source.membership.session_timeout_s / 2):
                await self._idle.wait()
                await self.commits.over()

    # -- what is assumed ----------------------------------------------------------------------------------------------

    async def look(self) -> Look:
        """See `Session.look`."""
        return await self._inspector.look()

    def begin_anew(self) -> None:
        """A topic is another one than before: begin the assignment again before anything else is taken."""
        self.progress = None

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """See `Session.mend`."""
        return await self._inspector.mend()

    def scopes(self, findings: Sequence[Finding]) -> list[Command] | None:
        """See `Session.scopes`."""
        return self.source.scopes(findings)

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        progress, told = self._inspector.told
        if progress is not None and progress is self.progress:  # what was missed since then is yet to be reported
            subjects = {(finding.assumption, finding.subject) for finding in findings}
            progress.made_up([one for one, by in told.items() if by in subjects])
            if self._idle.is_set() and not self._taking:
                await self.commits.commit(progress)


class _RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, session: TopicSession) -> None:
        self._session = session

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Wait for the batch in hand: all others are committed."""
        if revoked:
            await self._session.hand_over()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Nothing: the next `take` begins the assignment."""
