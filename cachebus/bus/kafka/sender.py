"""Messages on their way to Kafka: handed over at once, sent in order, bounded in number and in time.

An event that does not arrive costs no promise: L2 has it, and the nodes' probes find it. So nobody waits for the
broker, and what it does not take in time is counted and dropped, as is what it refuses. Who posts a command waits for
its answer, and is told. An event that arrives twice is told by its seq, and a command that does does no harm, so no
batch is numbered: behind one that was refused the broker would take no other.

Each partition has a queue of its own. A leader's partitions are sent to over one connection, their lane. A partition
that the leader answers for too late, as one whose followers hang, goes apart until it is answered for in time, by one
of a few lanes for such: in the shared one the others would wait for it. The first late answer, and those that are slow
but in time, they do wait for: half of `timeout_s` at most.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from cachebus.base.backoff import Attempts
from cachebus.base.clock import Clock
from cachebus.base.kept import kept
from cachebus.base.log import logger
from cachebus.bus.kafka.client import KafkaAccess, quietly
from cachebus.bus.kafka.connection import KafkaConnection, unavailable
from cachebus.bus.kafka.envelope import Headers
from cachebus.bus.kafka.lane import REQUEST_BYTES, Lane, Way
from cachebus.bus.kafka.queue import OutgoingBatch, Posted, Queue
from cachebus.bus.kafka.reach import Reach
from cachebus.bus.kafka.refusals import refusal
from cachebus.bus.kafka.topic import TopicLayout
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
LEAST_BYTES: Final = 512
LESS: Final = 4
MORE: Final = 2
GIVEN_UP_S: Final = 1.0
"""So long a request to a broker that leads no more is still waited for."""

LANES_APART: Final = 4
"""The most that a leader has for partitions that it answers for too late, however many these are."""


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
        self._unresolved = 0
        """Messages that wait, or are on their way."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._reported: dict[int, str] = {}
        """By partition: why messages could not be sent."""

    @property
    def reaches(self) -> Sequence[Reach]:
        """Of all partitions, by their numbers: whether they can be sent to."""
        return [queue.reach for queue in self._queues]

    def trouble(self, shard: int) -> str:
        """Why the shard's messages can't be sent, or the last of those that nobody waits for were not; "" where neither
        is known."""
        queues = self._queues
        if not queues:
            return str(unavailable(self._access, "it is being connected to"))
        queue = queues[shard % len(queues)]
        return queue.reach.trouble or (queue.unsent and str(unavailable(self._access, queue.unsent)))

    def post(
        self, shard: int, key: bytes, message: bytes, headers: Headers, answer: asyncio.Future[None] | None = None
    ) -> None:
        """Have a message sent. Returns at once. What can't be sent is told by the `answer`, as `BusUnavailable`, or
        counted where nobody waits for one."""
        post = Posted(key, message, headers, self._clock() + self._access.timeout_s, answer)
        if not self._queues:
            self._fail(None, [post], "no broker is connected")
            return
        queue = self._queues[shard % len(self._queues)]
        if answer is not None and len(queue.waiting) >= MOST_WAITING:
            self._drop(queue, queue.take_abandoned(), "nobody waits for it any more")
        if len(queue.waiting) >= MOST_WAITING:
            self._fail(queue, [post], queue.why or f"{MOST_WAITING} wait already")
            return
        if queue.size_bytes and queue.size_bytes + post.size_bytes > MOST_BYTES // len(self._queues):
            self._fail(queue, [post], queue.why or f"{queue.size_bytes} bytes wait already")
            return
        queue.add(post)
        self._unresolved += 1
        self._idle.clear()
        self._stir(queue)

    def arrange(self, layout: TopicLayout) -> None:
        """Send to each partition at its leader."""
        for queue in self._queues[len(layout.leaders) :]:
            self._drop(queue, queue.expire(math.inf), "the partition was removed")
            queue.reach.end("the partition was removed")
            queue.leader = None
            self._place(queue)
        self._queues = self._queues[: len(layout.leaders)]  # another list: some thread may be looking at this one
        while len(self._queues) < len(layout.leaders):
            self._queues.append(Queue(len(self._queues), Reach(self._access, self._clock), Attempts(self._clock)))
        for queue, leader in zip(self._queues, layout.leaders, strict=True):
            queue.leader = leader
            if leader is None:
                queue.why = f"a partition of {self._access.topic} has no leader"
                queue.reach.lost(queue.why)
            self._place(queue)
        self._end_empty()

    def _place(self, queue: Queue) -> None:
        """Have it sent by the lane that is its own now, where it has a leader. A lane that is empty then is left."""
        way: Way | None = None
        if queue.leader is not None:
            way = queue.leader, queue.number % LANES_APART if queue.apart else None
        before = queue.lane
        if before is not None and way != before.way:
            before.leave(queue)
            queue.lane = None
        if way is not None:
            self._join(queue, way)
        self._stir(queue)

    def _join(self, queue: Queue, way: Way) -> None:
        lane = self._lanes.get(way)
        if lane is None:
            lane = self._lanes[way] = Lane(way)
            lane.task = kept(partial(self._carry, lane), "cachebus-kafka-sender")
        queue.lane = lane
        lane.queues[queue.number] = queue
        if lane.connection is not None:
            queue.reach.gained()
        elif queue.reach.there:
            queue.reach.lost(f"{way[0]} is being connected to")

    def _end_empty(self) -> None:
        for lane in [lane for lane in self._lanes.values() if not lane.queues]:
            self._end(self._lanes.pop(lane.way))

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
        if queue.lane is not None and queue.waiting:
            queue.lane.stir(queue)
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
                    await self._carry_over(lane, await self._watch.connected(lane.way[0]), attempts)
                except Exception as error:  # noqa: BLE001 (whatever it is: this connection is not to be trusted)
                    attempts.failed()
                    for queue in lane.queues.values():
                        queue.why = error
                        queue.reach.lost(error)
                    self._watch.miss()

    async def _carry_over(self, lane: Lane, connection: KafkaConnection, attempts: Attempts) -> None:
        connection.on_lost = lane.stirred.set
        lane.connection = connection
        attempts.succeeded()
        for queue in lane.queues.values():
            if isinstance(queue.why, Exception):  # as this connection was not there, or did not answer
                queue.unsent = ""
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

    async def _loaded(self, lane: Lane, connection: KafkaConnection) -> list[OutgoingBatch]:
        """What waits for the lane's partitions, once anything does; nothing where the lane or the connection ends."""
        while not lane.over and not connection.lost:
            lane.stirred.clear()
            pause_s: float | None = connection.pause_s
            if not pause_s:
                if ready := lane.take_ready(self._clock()):
                    return _portion(ready, lane.portion)
                pause_s = lane.pause_s(self._clock())
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await lane.stirred.wait()
        return []

    async def _deliver(self, connection: KafkaConnection, batches: list[OutgoingBatch], lane: Lane) -> None:
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
            for _, codes in answer.topics:
                for number, code, *_ in codes:
                    self._answered(hand.pop(number), code)
            self._end_empty()
        except TimeoutError:
            lane.portion = max(LEAST_BYTES, min(lane.portion, size_bytes) // LESS)
            raise
        finally:
            for batch in hand.values():
                batch.queue.unload(batch)
                self._stir(batch.queue)

    def _answered(self, batch: OutgoingBatch, code: int) -> None:
        from aiokafka.errors import for_code

        queue, error = batch.queue, for_code(code)
        if code and error.retriable:  # until it is due
            queue.unload(batch)
            queue.attempts.failed()
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
                self._drop(queue, batch.posts, refusal(self._access, code, "Write", len(batch.data)))
            else:
                queue.most = min(MOST_WAITING, 2 * queue.most)
                self._resolve(batch.posts)
                self._reported.pop(queue.number, None)
                queue.why = queue.unsent = ""
        queue.apart = code in LATE
        self._place(queue)

    def _drop(self, queue: Queue, posts: list[Posted], why: object) -> None:
        if posts:
            self._fail(queue, posts, why)
            self._resolve(posts)

    def _resolve(self, posts: list[Posted]) -> None:
        for post in posts:
            if post.answer is not None and not post.answer.done():
                post.answer.set_result(None)
        self._unresolved -= len(posts)
        if not self._unresolved:
            self._idle.set()

    def _fail(self, queue: Queue | None, posts: list[Posted], why: object) -> None:
        """Each reason is logged once, but for those who are told."""
        for post in posts:
            if post.answer is not None and not post.answer.done():
                post.answer.set_exception(unavailable(self._access, why))
        untold = sum(post.answer is None for post in posts)
        if not untold:
            return
        self._counters.bus_publish_failures += untold
        reason, number = str(why) or type(why).__name__, 0
        if queue is not None:
            queue.unsent, number = reason, queue.number
        if number not in self._reported and reason not in self._reported.values():
            logger.warning("events could not be published on Kafka; nodes find them by their probes: {}", reason)
        self._reported.setdefault(number, reason)

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


def _portion(queues: list[Queue], most_bytes: int) -> list[OutgoingBatch]:
    """Batches of these, together no more than so much but for the first message. The next request begins with another
    queue."""
    batches = list[OutgoingBatch]()
    random.shuffle(queues)
    for queue in queues:
        if most_bytes <= 0:
            break
        batches.append(queue.load(most_bytes))
        most_bytes -= len(batches[-1].data)
    return batches
