"""The messages that wait for one partition, and how they become batches."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, NamedTuple

from cachebus.base.backoff import Attempts
from cachebus.bus.kafka.connection import BrokerAddress
from cachebus.bus.kafka.envelope import Headers
from cachebus.bus.kafka.lane import Lane
from cachebus.bus.kafka.reach import Reach

BATCH_BYTES: Final = 256 * 1024
BESIDES_BYTES: Final = 500
"""About what a message takes in memory besides its own bytes."""


class Posted(NamedTuple):
    """A message, and when it is given up."""

    key: bytes
    message: bytes
    headers: Headers
    due_s: float
    answer: asyncio.Future[None] | None = None
    """For who waits until Kafka has it; None for what nobody waits for."""

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.key) + len(self.message) + BESIDES_BYTES


class OutgoingBatch(NamedTuple):
    """Messages on their way, as the driver writes them."""

    queue: Queue
    posts: list[Posted]
    data: bytes


class Queue:
    """Of one partition, in order."""

    def __init__(self, number: int, reach: Reach, attempts: Attempts) -> None:
        self.number = number
        self.reach = reach
        self.attempts = attempts
        self.waiting: deque[Posted] = deque()
        self.size_bytes = 0
        """About how much memory those take that wait, or are on their way."""
        self.busy = False
        """Whether a batch of it is on its way: the next one waits for the answer, or they might be swapped."""
        self.leader: BrokerAddress | None = None
        self.apart = False
        """Whether it is sent apart from those that are answered for in time."""
        self.lane: Lane | None = None
        """By which it is sent; None without a leader."""
        self.why: object = ""
        """What keeps it from being sent."""
        self.unsent = ""
        """Why the last events were not sent; "" where they were, or the leader was connected to since."""
        self.timer: asyncio.TimerHandle | None = None
        self.most = 10_000
        """The most messages of a batch."""

    def add(self, post: Posted) -> None:
        """One more waits."""
        self.waiting.append(post)
        self.size_bytes += post.size_bytes

    def load(self, most_bytes: int = BATCH_BYTES) -> OutgoingBatch:
        """The first of what waits, at most so much, and as a batch holds; a message that is larger goes by itself."""
        from aiokafka.producer.message_accumulator import BatchBuilder

        builder: Any = BatchBuilder(min(most_bytes, BATCH_BYTES), 0)
        posts: list[Posted] = []
        while self.waiting and len(posts) < self.most:
            post = self.waiting[0]
            if builder.append(timestamp=None, key=post.key, value=post.message, headers=post.headers) is None:
                break
            posts.append(self.waiting.popleft())
        self.busy = True
        return OutgoingBatch(self, posts, bytes(builder._build()))

    def unload(self, batch: OutgoingBatch) -> None:
        """It was not sent: it goes first again."""
        self.busy = False
        self.waiting.extendleft(reversed(batch.posts))

    def over(self, batch: OutgoingBatch) -> None:
        """It was sent, or is given up."""
        self.busy = False
        self.size_bytes -= sum(post.size_bytes for post in batch.posts)

    def take_abandoned(self) -> list[Posted]:
        """Drop those whose callers have gone, and give them."""
        gone = [post for post in self.waiting if post.answer is not None and post.answer.done()]
        if gone:
            self.waiting = deque(post for post in self.waiting if post.answer is None or not post.answer.done())
            self.size_bytes -= sum(post.size_bytes for post in gone)
        return gone

    def expire(self, now_s: float) -> list[Posted]:
        """Drop what has waited for too long, until `now_s`, and give it."""
        dropped: list[Posted] = []
        while self.waiting and self.waiting[0].due_s <= now_s:
            dropped.append(self.waiting.popleft())
        self.size_bytes -= sum(post.size_bytes for post in dropped)
        return dropped
