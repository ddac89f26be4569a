"""Messages on their way to Kafka: handed over at once, sent in order, bounded in number and in time.

An event that does not arrive costs no promise: L2 has it, and the nodes' probes find it. So nobody waits for the
broker, and what it does not take in time is counted and dropped, as is what it refuses. Who posts a command waits for
its answer, and is told. An event that arrives twice is told by its seq, and a command that does does no harm, so no
batch is numbered: behind one that was refused the broker would take no other.

Each partition has a queue of its own. A leader's partitions are sent to over one connection, their lane. A partition
that the leader answers for too late, as one whose followers hang, has a lane of its own until it is answered for in
time: in the shared one the others would wait for it. The first late answer, and those that are slow but in time, they
do wait for: half of `timeout_s` at most.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cachebus.base.backoff import Attempts
from cachebus.base.clock import Clock
from cachebus.base.log import logger
from cachebus.bus.kafka.client import KafkaAccess, quietly
from cachebus.bus.kafka.connection import Address, KafkaConnection, unavailable
from cachebus.bus.kafka.envelope import Headers
from cachebus.bus.kafka.queue import Batch, Posted, Queue
from cachebus.bus.kafka.reach import Reach
from cachebus.bus.kafka.topic import Layout
from cachebus.bus.kafka.watch import TopicWatch
from cachebus.observe import Counters
from cachebus.resp import ended

MOST_WAITING: Final = 10_000
"""So many messages of a partition."""
MOST_BYTES: Final = 64 * 1024 * 1024
"""So much memory those of all partitions take, and each an equal part; but one message may always wait."""
ANSWER_S: Final = 0.25
"""So much longer than the broker itself waits for followers its answer is waited for."""
ALL_REPLICAS: Final = -1
TOO_LARGE: Final = {10, 18}
"""Errors of a batch as a whole: its halves may be taken."""
LATE: Final = {7, 20}
"""Errors that a broker answers with after it has waited: for followers, in vain."""
FIRST_LOOK_S: Final = 0.001
REQUEST_BYTES: Final = 16 * 1024 * 1024
"""The most that is sent at once to one leader."""
LEAST_BYTES: Final = 4 * 1024
LESS: Final = 4
MORE: Final = 2
GIVEN_UP_S: Final = 1.0
"""So long a request to a broker that leads no more is still waited for."""

Way = tuple[Address, int | None]
"""A leader, and the number of the one partition of it that is sent to apart; None: of all others."""


class Lane:
    """One connection to a leader, over which one request at a time goes."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.connection: KafkaConnection | None = None
        self.portion = REQUEST_BYTES
        """How much is sent in one request: less after one that was not answered in time, as over a slow link, more
        after each that took less than half of it."""
        self.stirred = asyncio.Event()
        self.busy = False
        self.over = False
        self.task: asyncio.Task[None] | None = None


class KafkaSender:
    """Takes messages for the topic; the order in a shard is kept."""

    def __init__(self, access: KafkaAccess, watch: TopicWatch, counters: Counters, clock: Clock) -> None:
        """`watch`: is told of partitions that are not where they were."""
        self._access = access
        self._watch = watch
        self._counters = counters
        self._clock = clock
        self._queues: list[Queue] = []
        self._lanes: dict[Way, Lane] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._unsettled = 0
        """Messages that wait, or are on their way."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._told: dict[int, str] = {}
        """By partition: why messages could not be sent."""

    @property
    def reaches(self) -> Sequence[Reach]:
        """Of all partitions, by their numbers: whether they can be sent to."""
        return [queue.reach for queue in self._queues]

    def post(
        self, shard: int, key: bytes, message: bytes, headers: Headers, answer: asyncio.Future[None] | None = None
    ) -> None:
        """Have a message sent. Returns at once. What can't be sent is told by the `answer`, as `BusUnavailable`, or
        counted where nobody waits for one."""
        post = Posted(key, message, headers, self._clock() + self._access.timeout_s, answer)
        if not self._queues:
            self._fail(0, [post], "no broker is connected")
            return
        queue = self._queues[shard % len(self._queues)]
        if len(queue.waiting) >= MOST_WAITING:
            self._drop(queue, queue.left(), "nobody waits for it any more")
        if len(queue.waiting) >= MOST_WAITING:
            self._fail(queue.number, [post], queue.why or f"{MOST_WAITING} wait already")
            return
        if queue.size_bytes and queue.size_bytes + post.size_bytes > MOST_BYTES // len(self._queues):
            self._fail(queue.number, [post], queue.why or f"{queue.size_bytes} bytes wait already")
            return
        queue.add(post)
        self._unsettled += 1
        self._idle.clear()
        self._stir(queue)

    def arrange(self, layout: Layout) -> None:
        """Send to each partition at its leader."""
        for queue in self._queues[len(layout.leaders) :]:
            self._drop(queue, queue.expire(math.inf), "the partition was removed")
            queue.reach.end("the partition was removed")
        del self._queues[len(layout.leaders) :]
        while len(self._queues) < len(layout.leaders):
            self._queues.append(Queue(len(self._queues), Reach(self._access, self._clock), Attempts(self._clock)))
        for queue, leader in zip(self._queues, layout.leaders, strict=True):
            queue.leader = leader
            if leader is None:
                queue.why = f"a partition of {self._access.topic} has no leader"
                queue.reach.lost(queue.why)
        self._set_out()

    def _set_out(self) -> None:
        """Have the lanes that are needed, and no others."""
        wanted = {self._way(queue) for queue in self._queues} - {None}
        for gone in self._lanes.keys() - wanted:
            self._end(self._lanes.pop(gone))
        for queue in self._queues:
            way = self._way(queue)
            if way is None:
                continue
            lane = self._lanes.get(way)
            if lane is None:
                lane = self._lanes[way] = Lane(way)
                lane.task = asyncio.create_task(self._carry(lane), name="cachebus-kafka-sender")
            if lane.connection is not None:
                queue.reach.gained()
            elif queue.reach.there:
                queue.reach.lost(f"{lane.way[0]} is being connected to")
            lane.stirred.set()

    @staticmethod
    def _way(queue: Queue) -> Way | None:
        return None if queue.leader is None else (queue.leader, queue.number if queue.apart else None)

    def _of(self, lane: Lane) -> list[Queue]:
        return [queue for queue in self._queues if self._way(queue) == lane.way]

    def _end(self, lane: Lane) -> None:
        """At once, but for a request that is under way."""
        lane.over = True
        lane.stirred.set()
        if lane.task is not None:
            self._ending.add(lane.task)
            lane.task.add_done_callback(self._ending.discard)
            if lane.busy:
                asyncio.get_running_loop().call_later(GIVEN_UP_S, lane.task.cancel)
            else:
                lane.task.cancel()

    def _stir(self, queue: Queue) -> None:
        """Something of it waits: have it sent, or dropped when it is due."""
        way = self._way(queue)
        if way in self._lanes:
            self._lanes[way].stirred.set()
        if queue.timer is None and queue.waiting:
            left_s = max(FIRST_LOOK_S, queue.waiting[0].due_s - self._clock())
            queue.timer = asyncio.get_running_loop().call_later(left_s, self._expire, queue)

    def _expire(self, queue: Queue) -> None:
        queue.timer = None
        self._drop(queue, queue.expire(self._clock()), queue.why or f"not taken in {self._access.timeout_s:g} s")
        if queue.waiting:
            self._stir(queue)

    async def _carry(self, lane: Lane) -> None:
        """Connect, and send, as long as the lane is needed."""
        attempts = Attempts(self._clock)
        with quietly():
            while not lane.over:
                await asyncio.sleep(attempts.wait_s)
                try:
                    await self._carry_over(lane, await KafkaConnection.open(self._access, lane.way[0]), attempts)
                except Exception as error:  # noqa: BLE001 (whatever it is: this connection is not to be trusted)
                    attempts.over()
                    for queue in self._of(lane):
                        queue.why = error
                        queue.reach.lost(error)
                    self._watch.miss()

    async def _carry_over(self, lane: Lane, connection: KafkaConnection, attempts: Attempts) -> None:
        connection.on_lost = lane.stirred.set
        lane.connection = connection
        attempts.succeeded()
        for queue in self._of(lane):
            queue.reach.gained()
        try:
            while batches := await self._loaded(lane, connection):
                lane.busy = True
                await self._deliver(connection, batches, lane)
                lane.busy = False
            if not lane.over:
                raise ConnectionError(f"{connection.address} closed the connection")
        finally:
            lane.busy, lane.connection = False, None
            await connection.close()

    async def _loaded(self, lane: Lane, connection: KafkaConnection) -> list[Batch]:
        """What waits for the lane's partitions, once anything does; nothing where the lane or the connection ends."""
        while not lane.over and not connection.lost:
            lane.stirred.clear()
            queues = [queue for queue in self._of(lane) if queue.waiting and not queue.busy]
            pauses_s = [max(connection.pause_s, queue.attempts.wait_s) for queue in queues]
            if ready := [queue for queue, pause_s in zip(queues, pauses_s, strict=True) if not pause_s]:
                return _portion(ready, lane.portion)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pauses_s, default=None)):
                    await lane.stirred.wait()
        return []

    async def _deliver(self, connection: KafkaConnection, batches: list[Batch], lane: Lane) -> None:
        from aiokafka.protocol.produce import ProduceRequest

        patience_s, hand = self._access.timeout_s, {batch.queue.number: batch for batch in batches}
        partitions = [(number, batch.data) for number, batch in hand.items()]
        # The broker gives followers half of the time, so that its answer, which says who was late, comes within ours.
        request = ProduceRequest(None, ALL_REPLICAS, int(patience_s * 500), [(self._access.topic, partitions)])
        began_s, size_bytes = self._clock(), sum(len(batch.data) for batch in batches)
        try:
            answer = await connection.ask(request, patience_s + ANSWER_S)
            if self._clock() - began_s < patience_s / MORE:
                lane.portion = min(REQUEST_BYTES, MORE * lane.portion)
            late = [queue for queue in self._queues if queue.apart]
            for _, codes in answer.topics:
                for number, code, *_ in codes:
                    self._answered(hand.pop(number), code)
            if late != [queue for queue in self._queues if queue.apart]:
                self._set_out()
        except TimeoutError:
            lane.portion = max(LEAST_BYTES, min(lane.portion, size_bytes) // LESS)
            raise
        finally:
            for batch in hand.values():
                batch.queue.unload(batch)
                self._stir(batch.queue)

    def _answered(self, batch: Batch, code: int) -> None:
        from aiokafka.errors import for_code

        queue, error = batch.queue, for_code(code)
        if code and error.retriable:  # until it is due
            queue.unload(batch)
            queue.attempts.over()
            queue.why = error.__name__
            if error.invalid_metadata:
                self._watch.miss()
        elif code in TOO_LARGE and len(batch.posts) > 1:
            queue.unload(batch)
            queue.most = len(batch.posts) // 2
        else:
            queue.over(batch)
            queue.attempts.succeeded()
            if code:  # as what is too large, may not be written, or is of a clock that is off
                self._drop(queue, batch.posts, repr(error()))
            else:
                queue.most = min(MOST_WAITING, 2 * queue.most)
                self._settle(batch.posts)
                self._told.pop(queue.number, None)
                queue.why = ""
        queue.apart = code in LATE
        self._stir(queue)

    def _drop(self, queue: Queue, posts: list[Posted], why: object) -> None:
        if posts:
            self._fail(queue.number, posts, why)
            self._settle(posts)

    def _settle(self, posts: list[Posted]) -> None:
        for post in posts:
            if post.answer is not None and not post.answer.done():
                post.answer.set_result(None)
        self._unsettled -= len(posts)
        if not self._unsettled:
            self._idle.set()

    def _fail(self, number: int, posts: list[Posted], why: object) -> None:
        """Each reason is logged once, but for those who are told."""
        for post in posts:
            if post.answer is not None and not post.answer.done():
                post.answer.set_exception(unavailable(self._access, why))
        untold = sum(post.answer is None for post in posts)
        if not untold:
            return
        self._counters.bus_publish_failures += untold
        reason = str(why) or type(why).__name__
        if number not in self._told and reason not in self._told.values():
            logger.warning("events could not be published on Kafka; nodes find them by their probes: {}", reason)
        self._told.setdefault(number, reason)

    async def flush(self) -> None:
        """Wait until what was posted is sent, for `timeout_s` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._access.timeout_s):
                await self._idle.wait()

    async def close(self) -> None:
        """Give the connections back; what was not sent is counted."""
        lanes, self._lanes = list(self._lanes.values()), {}
        await ended(*(lane.task for lane in lanes), *self._ending)
        for queue in self._queues:
            if queue.timer is not None:
                queue.timer.cancel()
            self._drop(queue, queue.expire(math.inf), queue.why or "it was closed")
            queue.reach.lost("it was closed")
        self._queues = []


def _portion(queues: list[Queue], most_bytes: int) -> list[Batch]:
    """Batches of these, together no more than so much but for the first message. The next request begins with another
    queue."""
    batches = list[Batch]()
    random.shuffle(queues)
    for queue in queues:
        if most_bytes <= 0:
            break
        batches.append(queue.load(most_bytes))
        most_bytes -= len(batches[-1].data)
    return batches
