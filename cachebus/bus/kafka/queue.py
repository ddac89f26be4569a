"""The messages that wait for one partition, and how they become batches."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, NamedTuple

from cachebus.base.backoff import Attempts
from cachebus.bus.kafka.connection import Address
from cachebus.bus.kafka.envelope import Headers
from cachebus.bus.kafka.reach import Reach

BATCH_BYTES: Final = 256 * 1024


class Posted(NamedTuple):
    """A message, and when it is given up."""

    key: bytes
    message: bytes
    headers: Headers
    due_s: float


class Batch(NamedTuple):
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
        self.busy = False
        """Whether a batch of it is on its way: the next one waits for the answer, or they might be swapped."""
        self.leader: Address | None = None
        self.apart = False
        """Whether it has a lane of its own."""
        self.why: object = ""
        """What keeps it from being sent."""
        self.timer: asyncio.TimerHandle | None = None
        self.most = 10_000
        """The most messages of a batch."""

    def load(self) -> Batch:
        """The first of what waits, as much as a batch holds; a message that is larger goes by itself."""
        from aiokafka.producer.message_accumulator import BatchBuilder

        builder: Any = BatchBuilder(BATCH_BYTES, 0)
        posts: list[Posted] = []
        while self.waiting and len(posts) < self.most:
            post = self.waiting[0]
            if builder.append(timestamp=None, key=post.key, value=post.message, headers=post.headers) is None:
                break
            posts.append(self.waiting.popleft())
        self.busy = True
        return Batch(self, posts, bytes(builder._build()))

    def unload(self, batch: Batch) -> None:
        """It was not sent: it goes first again."""
        self.busy = False
        self.waiting.extendleft(reversed(batch.posts))

    def expire(self, now_s: float) -> int:
        """Drop what has waited for too long; how many that were."""
        before = len(self.waiting)
        while self.waiting and self.waiting[0].due_s <= now_s:
            self.waiting.popleft()
        return before - len(self.waiting)
