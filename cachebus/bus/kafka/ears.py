"""Events coming in from Kafka: each partition of the topic on its own, from its end at the moment of the start.

A leader's partitions are fetched over one connection, by one task. What befalls a leader, or one of its partitions,
makes the others neither deaf nor late: one with a flood to read is left out until it has read what came.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

from cachebus.base.backoff import Attempts
from cachebus.base.clock import Clock
from cachebus.base.kept import kept
from cachebus.base.log import logger
from cachebus.bus.kafka.client import KafkaAccess, quietly
from cachebus.bus.kafka.connection import BrokerAddress, KafkaConnection
from cachebus.bus.kafka.ear import Ear
from cachebus.bus.kafka.inflating import batches_in, codec_of
from cachebus.bus.kafka.opening import opened
from cachebus.bus.kafka.portion import PARTITION_BYTES, Portion
from cachebus.bus.kafka.reach import Reach
from cachebus.bus.kafka.refusals import refusal
from cachebus.bus.kafka.taking import Taking
from cachebus.bus.kafka.topic import TopicLayout
from cachebus.bus.kafka.watch import TopicWatch
from cachebus.observe import Counters
from cachebus.resp import ended

FETCH_WAIT_S: Final = 0.25
"""How long a broker that has nothing new holds its answer. So often we hear that it is alive."""
PATIENCE_S: Final = 0.01
"""So long the next fetch waits for partitions that still read what came of the last one."""
FEW: Final = 100
CALM_S: Final = 20e-6
"""For each partition more than these, a fetch that brought something is followed by so long a pause: each names them
all, both ways, and would be asked anew for every single event."""
READING_WAIT_S: Final = 0.01
"""The same while some partition is still read: that one is to be fetched again as soon as it has been."""
MOST_AT_ONCE: Final = 500
MOST_BEHIND: Final = 10_000
"""So many messages a partition that is back may be ahead of where it was lost. Where it is further, or has fewer than
then, hearing goes on at its end: the log in L2 has what was missed."""
END: Final = -1
OUT_OF_RANGE: Final = 1


class KafkaEars:
    """Hears every partition."""

    def __init__(
        self, access: KafkaAccess, taking: Taking, watch: TopicWatch, counters: Counters, clock: Clock
    ) -> None:
        """`watch`: is told of partitions that are not where they were."""
        self._access = access
        self._taking = taking
        self._watch = watch
        self._counters = counters
        self._clock = clock
        self._ears: list[Ear] = []
        self._led: dict[BrokerAddress, dict[int, Ear]] = {}
        """By leader and number: a topic may have thousands."""
        self._listening: dict[BrokerAddress, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._reading: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Lock()
        """However many partitions have a flood, one of them reads in each tick of the loop, `MOST_AT_ONCE` messages."""
        self.opened = 0
        """How many connections there have been."""

    @property
    def reaches(self) -> Sequence[Reach]:
        """Of all partitions, by their numbers: whether they are heard."""
        return [ear.reach for ear in self._ears]

    def trouble(self, shard: int) -> str:
        """Why the shard's messages are not heard; "" where they are."""
        ears = self._ears
        return ears[shard % len(ears)].reach.trouble if ears else ""

    def arrange(self, layout: TopicLayout) -> None:
        """Hear each partition at its leader."""
        self._count(len(layout.leaders))
        for ear, leader in zip(self._ears, layout.leaders, strict=True):
            if leader is None:
                ear.reach.lost(f"a partition of {self._access.topic} has no leader")
            if leader != ear.leader:
                ear.leader, ear.placed = leader, False
        self._led.clear()
        for ear in self._ears:
            if ear.leader is not None:
                self._led.setdefault(ear.leader, {})[ear.number] = ear
        for gone in self._listening.keys() - self._led.keys():
            self._end(self._listening.pop(gone))
        for leader in self._led.keys() - self._listening.keys():
            self._listening[leader] = kept(partial(self._listen_to, leader), "cachebus-kafka-ears")

    def _count(self, wanted: int) -> None:
        if not self._ears or wanted == len(self._ears):
            position = None
        else:  # shards lie in other partitions now, and all that is in one that was added is new
            logger.info("the Kafka topic {} has {} partitions now", self._access.topic, wanted)
            position = 0
            for ear in self._ears:
                ear.reach.lost(f"{self._access.topic} has other partitions")
                ear.placed = False
        for ear in self._ears[wanted:]:
            ear.leader = None
            ear.reach.end(f"{self._access.topic} has fewer partitions")
        self._ears = self._ears[:wanted]  # another list: some thread may be looking at this one
        while len(self._ears) < wanted:
            self._ears.append(Ear(len(self._ears), Reach(self._access, self._clock), Attempts(self._clock), position))

    def _end(self, task: asyncio.Task[None]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    def _of(self, leader: BrokerAddress) -> list[Ear]:
        return [*self._led.get(leader, {}).values()]

    async def _listen_to(self, leader: BrokerAddress) -> None:
        """Connect, and hear the leader's partitions, until it has none."""
        attempts, portion = Attempts(self._clock), Portion()
        with quietly():
            while True:
                await asyncio.sleep(attempts.wait_s)
                try:
                    connection = await self._watch.connected(leader)
                    self.opened += 1
                    attempts.succeeded()
                    await self._listen_over(connection, portion)
                except Exception as error:  # noqa: BLE001 (whatever it is, it is told to all who wait)
                    attempts.failed()
                    for ear in self._of(leader):
                        ear.placed = False
                        ear.reach.lost(error)
                    self._watch.miss()

    async def _listen_over(self, connection: KafkaConnection, portion: Portion) -> None:
        try:
            while True:
                ears = self._of(connection.address)
                due = [ear for ear in ears if not ear.attempts.wait_s and not ear.reading]
                if not due:
                    await _first(ears)
                if lost := [ear for ear in due if not ear.placed]:
                    await self._place(connection, lost)
                if placed := [ear for ear in due if ear.placed]:
                    await self._fetch(connection, placed, portion)
        finally:
            await connection.close()

    async def _place(self, connection: KafkaConnection, ears: list[Ear]) -> None:
        """Go on where each was, or at its end."""
        from aiokafka.protocol.offset import OffsetRequest

        request = OffsetRequest(-1, 0, [(self._access.topic, [(ear.number, END) for ear in ears])])
        for ear, code, _, end, *_ in self._answers(connection, await connection.ask(request, self._access.timeout_s)):
            if code:
                self._refused(ear, code)
                continue
            if ear.position is not None and not 0 <= end - ear.position <= MOST_BEHIND:
                self._lost_position(ear)
            if ear.position is None:
                ear.position = end
            ear.placed = True

    async def _fetch(self, connection: KafkaConnection, ears: list[Ear], portion: Portion) -> None:
        """Each that is answered is heard from then on: who may not read may still ask for the end."""
        from aiokafka.protocol.fetch import FetchRequest

        random.shuffle(ears)  # of one message that is larger than all others may be, only the first is sure to come
        asked = {ear.number: ear.position for ear in ears}
        request = FetchRequest(
            int(self._wait_s(connection.address, ears) * 1000),
            1,
            portion.most_bytes,
            0,
            [(self._access.topic, [(number, position or 0, PARTITION_BYTES) for number, position in asked.items()])],
        )
        began_s, patience_s = self._clock(), self._access.timeout_s + FETCH_WAIT_S
        try:
            answer = await connection.ask(request, patience_s)
        except TimeoutError:  # over a slow link it may have been too much
            if portion.least:  # even of one batch, which may be of any of them
                self._lost_position(ears[0])
            portion.late(len(ears))
            raise
        portion.came(self._clock() - began_s, patience_s)
        reading = list[asyncio.Task[None]]()
        for ear, code, *_, data in self._answers(connection, answer):
            if ear.position != asked.get(ear.number):
                continue
            if code == OUT_OF_RANGE:
                self._lost_position(ear)
                ear.placed = False
            elif code:
                self._refused(ear, code)
            else:
                ear.attempts.succeeded()
                if ear.placed:
                    ear.reach.gained()
                if data:
                    ear.reading = asyncio.create_task(self._read(ear, connection.address, data))
                    ear.reading.add_done_callback(self._reading.discard)
                    reading.append(ear.reading)
        if reading:
            self._reading.update(reading)
            await asyncio.wait(reading, timeout=PATIENCE_S)
            await asyncio.sleep(CALM_S * max(0, len(asked) - FEW))

    def _wait_s(self, leader: BrokerAddress, asked: list[Ear]) -> float:
        """How long the broker may hold its answer."""
        if not all(ear.reach.there for ear in asked):
            return 0.0
        return READING_WAIT_S if any(ear.reading for ear in self._of(leader)) else FETCH_WAIT_S

    def _answers(self, connection: KafkaConnection, answer: Any) -> list[tuple[Any, ...]]:
        """What a leader says of its partitions: each that is still its own, with the rest."""
        ears = self._led.get(connection.address, {})
        return [
            (ears[number], *rest) for _, partitions in answer.topics for number, *rest in partitions if number in ears
        ]

    def _refused(self, ear: Ear, code: int) -> None:
        ear.placed = False
        ear.attempts.failed()
        ear.reach.lost(f"a partition of {self._access.topic}: {refusal(self._access, code, 'Read')}")
        self._watch.miss()

    def _lost_position(self, ear: Ear) -> None:
        """What stood there is gone: go on at the end. The probe finds what was missed, and the log in L2 has it."""
        ear.position = None
        self._counters.bus_positions_lost += 1
        logger.warning(
            "Kafka no longer has what comes next in partition {} of {}; going on at its end",
            ear.number,
            self._access.topic,
        )

    async def _read(self, ear: Ear, leader: BrokerAddress, data: bytes) -> None:
        """Take the messages, until the partition lies elsewhere."""
        try:
            turn = 0
            if len(self._reading) > 1:
                await self._breathe()
            for raw in batches_in(data):
                next_offset, messages = opened(raw)
                weight = MOST_AT_ONCE if codec_of(raw) else 1
                while True:
                    turn += weight
                    if turn >= MOST_AT_ONCE:
                        turn = 0
                        await self._breathe()
                        if ear.leader != leader:
                            return
                    message, weight = self._next(ear, messages), 1
                    if message is None:
                        break
                    if message.offset >= (ear.position or 0):
                        ear.position = message.offset + 1
                        self._taking.take(f"{self._access.topic}/{ear.number}", message)
                ear.position = next_offset
        except Exception as error:  # noqa: BLE001 (whatever it is, hearing goes on at the end, behind what caused it)
            self._lost_position(ear)
            ear.placed = False
            ear.attempts.failed()
            ear.reach.lost(error)
            logger.warning("what came from Kafka could not be read; listening anew: {!r}", error)
        finally:
            ear.reading = None

    async def _breathe(self) -> None:
        """In a flood nothing else here waits."""
        async with self._turns:
            await asyncio.sleep(0)

    def _next(self, ear: Ear, messages: Iterator[Any]) -> Any:
        """None at the end. A message that can't be read, and those of its batch behind it, are passed over, and
        counted."""
        try:
            return next(messages, None)
        except Exception as error:  # noqa: BLE001 (anybody may write there, in any form)
            self._counters.events_corrupt += 1
            partition = f"{self._access.topic}/{ear.number}"
            logger.warning("messages in {} can't be read, and are passed over: {!r}", partition, error)
            return None

    async def close(self) -> None:
        """Stop listening; what comes next is the end, when it is begun again."""
        listening, self._listening = list(self._listening.values()), {}
        await ended(*listening, *self._ending, *self._reading)
        for ear in self._ears:
            ear.reach.lost("it was closed")
        self._ears, self._led = [], {}


async def _first(ears: list[Ear]) -> None:
    """Until one of them may be due."""
    wait_s = min((ear.attempts.wait_s for ear in ears if not ear.reading), default=FETCH_WAIT_S)
    if reading := [ear.reading for ear in ears if ear.reading]:
        await asyncio.wait(reading, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(wait_s)
