"""A worker that reads topics as one of a group: several share the partitions, and what was applied is committed."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
)
from loguru import logger

from cachebus.bus.kafka_client import quietly
from cachebus.cascade import Cascade
from cachebus.clock import wall_s
from cachebus.errors import BusUnavailable
from cachebus.settings import Settings
from consumers.apply import Applier
from consumers.patience import Patience
from consumers.topics.dead_topic import DeadTopic
from consumers.topics.held import Asked, Held
from consumers.topics.unreadable import UNREADABLE, Unreadable, go_back, next_one
from consumers.worker import Worker

POLL_S: Final = 0.3
NEW_TOPICS_S: Final = 5.0
"""How soon a topic that fits the pattern is found after it was made."""
LOOK_EVERY_S: Final = 1.0
LOOK_TIMEOUT_S: Final = 3.0
LEAVE_S: Final = 5.0
"""How long it may take to say goodbye to brokers: those that do not answer find out by themselves."""
NO_POLL_LIMIT_MS: Final = 86_400_000
"""A batch that waits for L2 must not cost the place in the group: whoever got the partitions would wait likewise."""
MOVED_ON: Final = (CommitFailedError, IllegalStateError, RebalanceInProgressError)
"""Partitions are another worker's now: what was not committed comes again, to it."""

TROUBLE: Final = (KafkaError, OSError, TimeoutError, BusUnavailable)
"""What is raised when Kafka is out of reach, or does not let one do what is asked."""
Records = Mapping[TopicPartition, Sequence[Any]]


@dataclass(frozen=True)
class Membership:
    """Which group, at which brokers, and how it is read."""

    clients: Mapping[str, Any] = field(repr=False)
    """aiokafka's client settings: the brokers, TLS, SASL."""
    group: str
    dead_topic: str
    batch: int = 5000
    """Messages that are in hand together, at most."""
    session_timeout_s: float = 10.0
    """So long after a worker vanished without a word others take its partitions over."""


class GroupWorker(Worker):
    """Takes messages, applies what they ask for, sets aside what can't be, and only then commits; `_carry` does it."""

    def __init__(self, name: str, settings: Settings, membership: Membership, cascades: Iterable[Cascade] = ()) -> None:
        super().__init__(name, ("l2", "kafka"))
        self.membership = membership
        self._applier = Applier(settings, self.health, self.meters, cascades)
        self._patience = Patience("kafka", self.health)
        self._dead = DeadTopic(membership.clients, membership.dead_topic)
        self._in_hand = asyncio.Lock()
        """Held from before a batch is looked at until its offsets are committed."""
        self._read: dict[TopicPartition, int] = {}
        """Up to where each partition is committed."""
        self._taken: dict[TopicPartition, int] = {}
        """Up to where each partition was taken; what is held lies in front of that."""
        self._held = Held()
        self._one_by_one = False
        """Whether one of the next messages can't be read, and is looked for."""

    async def run(self) -> None:
        """Follow the topics until drained."""
        work = asyncio.create_task(self._work(), name=f"cachebus-{self.name}")
        asked = asyncio.create_task(self._draining.wait(), name=f"cachebus-{self.name}-drain")
        try:
            await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                async with self._in_hand:  # the batch under way is the last
                    work.cancel()
        finally:
            for task in (work, asked):
                task.cancel()
                await asyncio.wait((task,))
        if not work.cancelled():
            work.result()

    # -- what each kind of worker does its own way -------------------------------------------------------------

    @abstractmethod
    def _subscription(self) -> dict[str, Any]:
        """Arguments of the consumer's `subscribe`."""

    @abstractmethod
    async def _carry(self, records: Records) -> None:
        """Set aside, apply, account: what of it is not durable when this returns is lost."""

    @abstractmethod
    async def _missed(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        """Kafka has removed what was not read yet (or the topic was made anew): go on from the beginning."""

    async def _prepared(self) -> None:
        """See to it that there is something to read; aiokafka's errors, `BusUnavailable`, or `ConfigError`."""

    # -- what all do -------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        async with self._applier.opened():
            while True:
                try:
                    with quietly():  # aiokafka would tell each attempt of a broker that is away
                        await self._prepared()
                        await self._follow()
                except TROUBLE as error:
                    await self._patience.wait(_told(error))

    async def _follow(self) -> None:
        member = self.membership
        consumer = AIOKafkaConsumer(
            **member.clients,
            group_id=member.group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a log that was cut before it was read is to be told, not skipped
            isolation_level="read_committed",
            metadata_max_age_ms=int(NEW_TOPICS_S * 1000),
            fetch_max_wait_ms=200,
            max_poll_interval_ms=NO_POLL_LIMIT_MS,
            session_timeout_ms=int(member.session_timeout_s * 1000),
            heartbeat_interval_ms=int(member.session_timeout_s * 300),
        )
        looking: asyncio.Task[None] | None = None
        self._begin_anew()
        try:
            await consumer.start()
            consumer.subscribe(**self._subscription(), listener=_Shares(self))
            looking = asyncio.create_task(self._look(consumer), name=f"cachebus-{self.name}-look")
            while True:
                if self._held.full:
                    await asyncio.sleep(self._held.wait_s)
                    records: Records = {}
                else:
                    records = await self._next(consumer)
                if records or self._held.due:
                    async with self._in_hand:
                        await self._carry(records)
                        await self._try_held()
                        await self._commit(consumer, records)
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.wait((looking,))
            with suppress(*TROUBLE):
                async with asyncio.timeout(LEAVE_S):
                    await consumer.stop()
                    await self._dead.aclose()

    async def _next(self, consumer: AIOKafkaConsumer) -> Records:
        try:
            if self._one_by_one:
                return await self._next_one(consumer)
            found: Records = await consumer.getmany(
                timeout_ms=int(POLL_S * 1000), max_records=self.membership.batch
            )  # fmt: skip
            return found
        except UNREADABLE:
            self._one_by_one = True
            await go_back(consumer)
        except NoOffsetForPartitionError as unread:  # nothing of it was ever read: all of it is to be
            await consumer.seek_to_beginning(*_partitions(unread))
        except OffsetOutOfRangeError as cut:
            await self._missed(consumer, _partitions(cut))
        return {}

    async def _next_one(self, consumer: AIOKafkaConsumer) -> Records:
        found = await next_one(consumer)
        if not isinstance(found, Unreadable):
            self._one_by_one = bool(found)
            return found
        self._one_by_one = False
        letter = found.letter()
        async with self._in_hand:
            await self._dead.put([letter])
            self._taken[found.partition] = found.behind
            await self._commit(consumer, {})
        self.meters.done("dead", found.behind - found.first)
        logger.error("{}: {} is set aside: {}", self.name, letter.source, letter.reason)
        return {}

    async def _applied(self, asked: Sequence[Asked]) -> list[Asked]:
        """Apply what can be, and hold what waits for one primary of several that is away; gives what was applied. What
        comes behind something held for the same primary is held with it. While all are away, nothing goes on."""
        away = await self._applier.apply_around([one.plan for one in asked], self._held.shards)
        self._held.add([one for one in asked if one.plan.shard in away])
        return [one for one in asked if one.plan.shard not in away]

    async def _try_held(self) -> None:
        if self._held.due:
            self._account_applied(self._held.released(await self._applier.apply_what_can_be(self._held.plans)))
        self.meters.held.set(len(self._held))

    def _account_applied(self, asked: Sequence[Asked]) -> None:
        now_s = wall_s()
        sent_s = [one.sent_s for one in asked if one.sent_s is not None]
        for at_s in sent_s:
            self.meters.lag_s.observe(max(0.0, now_s - at_s))
        self.meters.done("applied", len(sent_s))

    async def _commit(self, consumer: AIOKafkaConsumer, records: Records) -> None:
        """Of each partition what lies before the first message that is held."""
        self._taken |= {partition: several[-1].offset + 1 for partition, several in records.items()}
        assigned, done = consumer.assignment(), dict[TopicPartition, int]()
        for partition, taken in self._taken.items():
            first = self._held.first(partition)
            up_to = taken if first is None else min(first, taken)
            if partition in assigned and up_to != self._read.get(partition):
                done[partition] = up_to
        if done:
            with suppress(*MOVED_ON):
                await consumer.commit(done)
            self._read |= done

    async def _look(self, consumer: AIOKafkaConsumer) -> None:
        """Whether brokers answer, which a consumer itself never tells, and how much is waiting."""
        while True:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    await self._look_once(consumer)
            except TROUBLE as error:
                self._patience.failed("the brokers do not answer" if isinstance(error, TimeoutError) else _told(error))
            else:
                self._patience.over()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_once(self, consumer: AIOKafkaConsumer) -> None:
        assigned = consumer.assignment()
        if not assigned:
            await consumer.topics()
            self.meters.backlog.set(0)
            return
        ends = await consumer.end_offsets(assigned)
        for partition in assigned.difference(self._read):
            with suppress(IllegalStateError):  # it was given away meanwhile
                self._read[partition] = await consumer.committed(partition) or 0
        self._read = {partition: at for partition, at in self._read.items() if partition in assigned}
        self.meters.backlog.set(sum(max(0, ends[one] - at) for one, at in self._read.items() if one in ends))

    def _begin_anew(self) -> None:
        """A new consumer is given again what was not committed, and with it all that is held."""
        self._held.forget(lambda _: False)
        self._taken.clear()
        self._read.clear()

    async def hand_over(self, revoked: Collection[TopicPartition]) -> None:
        """Have what is in hand applied and committed before others get its partitions, as long as the group waits. What
        is held is theirs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.membership.session_timeout_s / 2), self._in_hand:
                pass
        self._held.forget(lambda partition: partition not in revoked)
        for partition in revoked:
            self._taken.pop(partition, None)
            self._read.pop(partition, None)


class _Shares(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, worker: GroupWorker) -> None:
        self._worker = worker

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Each batch is committed before the next is asked for: only the one in hand has to be waited for."""
        if revoked:
            await self._worker.hand_over(revoked)

    async def on_partitions_assigned(self, assigned: Any) -> None:
        name = self._worker.name
        logger.info("{}: reads {} partitions of {} topics", name, len(assigned), len({one.topic for one in assigned}))


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, BusUnavailable) else f"{type(error).__name__}: {error}"


def _partitions(error: KafkaError) -> list[TopicPartition]:
    """Those that such an error names: one, or a mapping from several to offsets."""
    (named,) = error.args
    return list(named) if isinstance(named, dict) else [named]
