"""Events on their way to Kafka: handed over at once, sent in order, bounded in number and in time.

An event that does not arrive costs no promise: L2 has it, and the nodes' probes find it. So nobody waits for the
broker, and what it does not take in time is counted and dropped, as is what it refuses. An event that arrives twice
is told by its seq, so no batch is numbered: behind one that was refused the broker would take no other.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from loguru import logger

from cachebus.base.backoff import Attempts
from cachebus.base.clock import Clock
from cachebus.bus.kafka_client import Endings, KafkaAccess, connecting, quietly
from cachebus.bus.kafka_envelope import Headers
from cachebus.errors import BusUnavailable
from cachebus.observe import Counters
from cachebus.resp import ended

MOST_WAITING: Final = 10_000
BATCH_BYTES: Final = 256 * 1024


class Posted(NamedTuple):
    """A message, with what says where it goes."""

    shard: int
    key: bytes
    message: bytes
    headers: Headers


class KafkaSender:
    """Takes messages for the topic; the order in a shard is kept."""

    def __init__(self, access: KafkaAccess, counters: Counters, clock: Clock) -> None:
        self._access = access
        self._counters = counters
        self._waiting: list[Posted] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._posted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self._attempts = Attempts(clock)
        self._endings = Endings()
        self._told = False

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._task is not None and not self._task.done()

    @property
    def kept(self) -> bool:
        """Whether it has been connected: from then on it sees to that by itself."""
        return self._keeping is not None

    async def keep(self) -> None:
        """Connect, and whenever the connection is lost again, unless that is done already; `BusUnavailable` after
        `connect_timeout_s` at most."""
        async with self._opening:
            if not self.kept:
                sending = await self._connected()
                self._keeping = asyncio.create_task(self._keep(sending), name="cachebus-kafka-keep")

    async def _keep(self, sending: asyncio.Task[None] | None) -> None:
        while True:
            if sending is not None:
                self._attempts.succeeded()
                await asyncio.wait([sending])
            self._attempts.over()
            await asyncio.sleep(self._attempts.wait_s)
            try:
                sending = await self._connected()
            except BusUnavailable as error:  # what can't be sent meanwhile is told by `_fail`
                logger.debug("{}", error)
                sending = None
            except Exception:  # noqa: BLE001 (logged with its trace; it must go on)
                logger.exception("could not connect to Kafka; it is tried again")
                sending = None

    async def _connected(self) -> asyncio.Task[None]:
        with connecting(self._access):
            producer = await self._started()
            self._task = asyncio.create_task(self._run(producer), name="cachebus-kafka-sender")
            self._task.add_done_callback(lambda _: self._ended(producer))
            return self._task

    async def _started(self) -> Any:
        from aiokafka import AIOKafkaProducer

        producer = AIOKafkaProducer(acks="all", linger_ms=0, max_batch_size=BATCH_BYTES, **self._access.arguments())
        async with asyncio.timeout(self._access.connect_timeout_s):
            await self._endings.started(producer, partial(end_producer, producer))
            try:
                await producer.partitions_for(self._access.topic)
            except BaseException:
                self._ended(producer)
                raise
        return producer

    def post(self, shard: int, key: bytes, message: bytes, headers: Headers) -> None:
        """Have a message sent. Returns at once; what can't be sent is counted."""
        if not self.connected:
            self._fail(1, "no broker is connected")
        elif len(self._waiting) >= MOST_WAITING:
            self._fail(1, f"{MOST_WAITING} wait already")
        else:
            self._waiting.append(Posted(shard, key, message, headers))
            self._idle.clear()
            self._posted.set()

    def _fail(self, count: int, why: str) -> None:
        self._counters.bus_publish_failures += count
        if not self._told:
            self._told = True
            logger.warning("events could not be published on Kafka; nodes find them by their probes: {}", why)

    async def _run(self, producer: Any) -> None:
        """Send what waits, all of it together, until a broker does not take it in time."""
        while True:
            if not self._waiting:
                self._idle.set()
                self._posted.clear()
                await self._posted.wait()
            letters, self._waiting = self._waiting, []
            missing = len(letters)
            try:
                async with asyncio.timeout(self._access.timeout_s):
                    for count, sent in await self._handed_over(producer, letters):
                        missing -= await self._arrived(count, sent)
            except Exception as error:  # noqa: BLE001 (whatever it is: this producer is not to be trusted any more)
                self._fail(missing, repr(error))
                return
            if missing:
                self._counters.bus_publish_failures += missing
            else:
                self._told = False

    async def _handed_over(self, producer: Any, letters: list[Posted]) -> list[tuple[int, asyncio.Future[object]]]:
        """In batches, each with the number of its messages and the future of its arrival."""
        topic = self._access.topic
        partitions = len(await producer.partitions_for(topic))
        lists: defaultdict[int, list[Posted]] = defaultdict(list)
        for letter in letters:
            lists[letter.shard % partitions].append(letter)
        sent = []
        for partition, posts in lists.items():
            at = 0
            while at < len(posts):
                batch, first = producer.create_batch(), at
                while at < len(posts) and self._fits(batch, posts[at]):
                    at += 1
                arrival = await producer.send_batch(batch, topic, partition=partition)
                arrival.add_done_callback(_seen)
                sent.append((at - first, arrival))
        return sent

    @staticmethod
    def _fits(batch: Any, letter: Posted) -> bool:
        """Whether it went into the batch; one that is larger than a batch goes into an empty one."""
        taken = batch.append(key=letter.key, value=letter.message, headers=letter.headers, timestamp=None)
        return taken is not None

    async def _arrived(self, count: int, sent: asyncio.Future[object]) -> int:
        from aiokafka.errors import KafkaError

        try:
            await asyncio.shield(sent)  # once: given up, the driver would hear nobody ask for its later failure
        except KafkaError as error:
            if error.retriable:
                raise  # and was tried again for as long as it may take
            self._fail(0, repr(error))  # as what is too large, may not be written, or is of a clock that is off
            return 0
        return count

    def _ended(self, producer: Any) -> None:
        lost, self._waiting = len(self._waiting), []
        if lost:
            self._fail(lost, "the connection was lost")
        self._idle.set()
        self._endings.add(asyncio.create_task(end_producer(producer)))

    async def close(self) -> None:
        """Send what waits, for `timeout_s` at most, and give the connection back."""
        keeping, self._keeping = self._keeping, None
        await ended(keeping)
        task, self._task = self._task, None
        if task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._access.timeout_s):
                    await self._idle.wait()
            task.cancel()
            await asyncio.wait([task])
        await self._endings.over(4 * self._access.timeout_s)


def _seen(arrival: asyncio.Future[object]) -> None:
    if not arrival.cancelled():
        arrival.exception()


async def end_producer(producer: Any) -> None:
    """Stop an aiokafka producer. Its own `stop` would try for ever to send what it holds."""
    with quietly():
        producer._closed = True
        for connection in list(producer.client._conns.values()):
            connection.close()  # answers that are waited for fail now
        # Which waits for what is in hand, and that for the client's look at the brokers: so the client comes last.
        await producer._sender.close()
        await producer.client.close()
