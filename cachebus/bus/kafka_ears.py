"""Events coming from Kafka: every partition of the topic, from its end at the moment of connecting."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Final

from loguru import logger

from cachebus.base.clock import Clock
from cachebus.bus.kafka_client import Endings, KafkaAccess, connecting, quietly
from cachebus.bus.kafka_envelope import Envelope
from cachebus.bus.kafka_topic import ensure
from cachebus.core.ports import Listener
from cachebus.observe import Counters

FETCH_WAIT_S: Final = 0.25
"""How long a broker that has nothing new holds its answer. So often we hear that it is alive."""
LOOK_EVERY_S: Final = 0.25
MOST_AT_ONCE: Final = 500
METADATA_AGE_MS: Final = 5000
"""So old may be what is known of the topic's partitions."""
WARN_EVERY_S: Final = 60.0


class KafkaEars:
    """Hears every message of this envelope's shards that it trusts, and tells the listener."""

    def __init__(
        self, access: KafkaAccess, envelope: Envelope, listener: Listener, counters: Counters, clock: Clock
    ) -> None:
        self._access = access
        self._envelope = envelope
        self._listener = listener
        self._counters = counters
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._consumer: Any = None
        self._opening = asyncio.Lock()
        self._endings = Endings()
        self._heard: dict[Any, int | None] = {}
        self._silent = 0
        self._told = ""
        self._looked_at_s = clock()
        self._warn_from_s = float("-inf")
        self.opened = 0

    @property
    def connected(self) -> bool:
        """Whether every partition's broker has answered of late."""
        return self._task is not None and not self._task.done()

    @property
    def running(self) -> asyncio.Task[None] | None:
        """What does the hearing, while it can; None before the first time."""
        return self._task

    async def connect(self) -> None:
        """Fix the positions at the end of every partition, if need be; `BusUnavailable` after `connect_timeout_s` at
        most, `ConfigError` for a topic that can't carry events."""
        async with self._opening:
            if self.connected:
                return
            with connecting(self._access):
                async with asyncio.timeout(self._access.connect_timeout_s):
                    await ensure(self._access, self._endings)
                    consumer = await self._started()
                self._consumer = consumer
                self._silent, self._heard, self._looked_at_s = 0, {}, self._clock()
                self._task = asyncio.create_task(self._run(consumer), name="cachebus-kafka-ears")
                self._task.add_done_callback(lambda _: self._ended(consumer))
                self.opened += 1

    async def _started(self) -> Any:
        from aiokafka import AIOKafkaConsumer, TopicPartition

        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=int(FETCH_WAIT_S * 1000),
            metadata_max_age_ms=METADATA_AGE_MS,
            **{**self._access.arguments(), "request_timeout_ms": int((self._access.timeout_s + FETCH_WAIT_S) * 1000)},
        )
        topic = self._access.topic
        await self._endings.started(consumer, partial(_end, consumer))
        try:
            await consumer._client.add_topic(topic)
            numbers = await consumer._client._wait_on_metadata(topic)
            partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
            ends = await consumer.end_offsets(partitions)
            consumer.assign(partitions)
            for partition in partitions:  # before anything else may run: nothing is fetched without a position
                consumer.seek(partition, ends[partition])
        except BaseException:
            self._ended(consumer)
            raise
        return consumer

    async def _run(self, consumer: Any) -> None:
        """Tell the listener of every message, until a broker falls silent."""
        try:
            while not self._deaf(consumer):
                await self._turn(consumer)
        except Exception as error:  # noqa: BLE001 (whatever it is, hearing begins anew, behind what caused it)
            if repr(error) != self._told:  # as where this user may not read: it would come at every attempt
                self._told = repr(error)
                logger.warning("what came from Kafka could not be read; listening anew: {!r}", error)

    async def _turn(self, consumer: Any) -> None:
        from aiokafka.errors import OffsetOutOfRangeError, RecordTooLargeError

        try:
            found = await consumer.getmany(timeout_ms=int(LOOK_EVERY_S * 1000), max_records=MOST_AT_ONCE)
        except OffsetOutOfRangeError as error:
            await self._lost_positions(consumer, error.args[0])
            return
        except RecordTooLargeError:  # the driver has stepped over it
            self._counters.events_corrupt += 1
            return
        for records in found.values():
            for record in records:
                self._take(record)
        if found:
            await asyncio.sleep(0)  # in a flood nothing else here waits
        if len(consumer.partitions_for_topic(self._access.topic) or ()) > len(consumer.assignment()):
            await self._widen(consumer)

    def _take(self, record: Any) -> None:
        envelope, value = self._envelope, record.value or b""
        shard = envelope.shard_of(record.key)
        if shard is None:
            return
        if envelope.trusts(record.key, value, record.headers):
            self._listener(shard, value)
        else:
            # No probe is asked for: whoever may write to the topic could have all nodes probe without end. If an event
            # is missing for it, the next regular probe finds that.
            self._refuse(record)

    def _refuse(self, record: Any) -> None:
        self._counters.events_unsigned += 1
        now_s = self._clock()
        if now_s < self._warn_from_s:
            return
        self._warn_from_s = now_s + WARN_EVERY_S
        logger.warning(
            "messages on Kafka that no key of kafka_events_key (CACHEBUS_KAFKA_EVENTS_KEY) has signed are passed over: "
            "{} so far, the last {}/{}@{}; nodes, producers and workers need the same keys",
            self._counters.events_unsigned,
            record.topic,
            record.partition,
            record.offset,
        )

    async def _lost_positions(self, consumer: Any, partitions: Mapping[Any, int]) -> None:
        """What stood there is gone: go on at the end. The probe finds what was missed, and the log in L2 has it."""
        ends = await consumer.end_offsets(list(partitions))
        for partition in partitions:
            consumer.seek(partition, ends[partition])
        self._counters.bus_positions_lost += len(partitions)
        logger.warning("Kafka no longer has what comes next in {} partitions; going on at their ends", len(partitions))

    async def _widen(self, consumer: Any) -> None:
        """The topic has more partitions than when this began: all that is in them is new."""
        from aiokafka import TopicPartition

        topic = self._access.topic
        positions = {partition: await consumer.position(partition) for partition in consumer.assignment()}
        wanted = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(wanted)
        for partition in wanted:
            consumer.seek(partition, positions.get(partition, 0))
        logger.info("the Kafka topic {} has {} partitions now", topic, len(wanted))

    def _deaf(self, consumer: Any) -> bool:
        """Whether a partition's broker has been silent for longer than a fetch may take.

        Counted in looks, not in seconds: after a stall of this process the answers that have come are yet to be read.
        """
        now_s = self._clock()
        if now_s - self._looked_at_s < LOOK_EVERY_S:
            return False
        self._looked_at_s = now_s
        heard = {partition: consumer.last_poll_timestamp(partition) for partition in consumer.assignment()}
        before, self._heard = self._heard, heard
        silent = any(before.get(partition) == at for partition, at in heard.items())
        self._silent = self._silent + 1 if silent else 0
        return self._silent * LOOK_EVERY_S > self._access.timeout_s + FETCH_WAIT_S

    def _ended(self, consumer: Any) -> None:
        self._endings.add(asyncio.create_task(_end(consumer)))

    async def close(self) -> None:
        """Stop listening."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._endings.over(4 * self._access.timeout_s)


async def _end(consumer: Any) -> None:
    """Stop an aiokafka consumer. Its own `stop` would take the end of a fetch that it cancels for its own."""
    with quietly():
        fetcher = consumer._fetcher
        if fetcher is not None:
            await _cancelled([fetcher._fetch_task])  # which would begin more of the others
            await _cancelled(fetcher._pending_tasks)
            fetcher._pending_tasks.clear()
        await consumer.stop()


async def _cancelled(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
