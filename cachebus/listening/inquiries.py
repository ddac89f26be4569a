"""Questions about keys that come over the bus, and the answers to those that this process has asked.

Whoever may send to the bus may ask, so neither costs more than it is worth:

1. What is too large, damaged, or no question is passed over.
2. A node answers `BURST` questions at once, and `PER_S` a second, whoever asks. What is beyond is passed over unread.
3. An answer tells names and numbers of one key, never a value, and is small whatever the key.
4. Of each question one answer a node is taken, `NODES_MAX` in all, and none once the time to ask is over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from cachebus.base.clock import Clock
from cachebus.wire.inquiry import QUESTION, CorruptInquiry, Inquiry, NodeAnswer, decode_answer, decode_question, id_of

PER_S: Final = 10.0
BURST: Final = 20
NODES_MAX: Final = 10_000


class NodeSaid(NamedTuple):
    """What a node has answered, and when that came, on the asker's clock."""

    answer: NodeAnswer
    at_s: float


class AskedInquiry:
    """One question under way, and who has answered it so far."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._came = asyncio.Event()
        self.said: dict[str, NodeSaid] = {}
        """By the node's id: the first that came."""

    def take(self, answer: NodeAnswer) -> None:
        """One more answer."""
        if len(self.said) < NODES_MAX and answer.node not in self.said:
            self.said[answer.node] = NodeSaid(answer, self._clock())
            self._came.set()

    async def next(self) -> None:
        """Return when another has come since the last return."""
        await self._came.wait()
        self._came.clear()


class Due(NamedTuple):
    """A question to be answered, and when it came."""

    shard: int
    question: Inquiry
    at_s: float


class Inquiries:
    """Those of one process: what it asks, and what it is asked, if it is a node."""

    def __init__(self, clock: Clock, *, answers: bool = True) -> None:
        """`answers`: False for who only asks."""
        self._clock = clock
        self._answers = answers
        self._asked: dict[bytes, AskedInquiry] = {}
        self._due: deque[Due] = deque()
        self._came = asyncio.Event()
        self._allowed = float(BURST)
        self._allowed_at_s = clock()

    @contextmanager
    def asking(self, question: Inquiry) -> Iterator[AskedInquiry]:
        """Gather the answers to a question inside the block."""
        asked = self._asked[question.id] = AskedInquiry(self._clock)
        try:
            yield asked
        finally:
            del self._asked[question.id]

    async def due(self) -> Due:
        """The next question that is to be answered."""
        while not self._due:
            self._came.clear()
            await self._came.wait()
        return self._due.popleft()

    def take(self, index: int, message: bytes) -> None:
        """Take in a question or an answer of the bus; whatever its bytes are, this returns."""
        asked = self._asked.get(id_of(message))
        try:
            if not message.startswith(QUESTION):
                if asked is not None:
                    asked.take(decode_answer(message))
            elif asked is None and self._may_answer():  # who asks looks at itself
                self._due.append(Due(index, decode_question(message), self._clock()))
                self._allowed -= 1
                self._came.set()
        except CorruptInquiry:
            return

    def _may_answer(self) -> bool:
        if not self._answers:
            return False
        now_s = self._clock()
        self._allowed = min(float(BURST), self._allowed + (now_s - self._allowed_at_s) * PER_S)
        self._allowed_at_s = now_s
        return self._allowed >= 1
