"""What nodes tell each other over the bus of the keys that are hot on them: questions that come, answers that are due.

A question names the one node that is to answer, so that many new nodes cause no storm. Whoever may send to the bus may
ask, and forge an answer. So:

1. What is too large, damaged, of no question of this process, or asks another node, is passed over.
2. A node answers `BURST` questions at once, and one each `EVERY_S`, whoever asks, and each of them once. What is beyond
   is passed over.
3. It looks for its hot keys once in `FRESH_S`, in steps, and sends its answer in pieces, with pauses.
4. A node that does not warm up itself, or still does, answers nothing.
5. Of an answer no more names are kept than were asked for. No node believes anything because of one: it reads what L2
   has under them, or finds nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import Final, NamedTuple

from cachebus.base.clock import Clock
from cachebus.core.hot import Hottest
from cachebus.core.node import Node
from cachebus.core.ports import Bus, Store
from cachebus.errors import CacheBusError
from cachebus.wire.heat import (
    HOT_QUESTION,
    HotKey,
    HotPiece,
    HotQuestion,
    decode_hot_piece,
    decode_hot_question,
    pieces_of,
)
from cachebus.wire.inquiry import CorruptInquiry, id_of

BURST: Final = 8
EVERY_S: Final = 1.0
FRESH_S: Final = 5.0
"""What was found to be hot is told to all who ask within so long."""
LATE_S: Final = 2.0
"""Who asks waits no longer for the first piece, so what is older is not answered any more."""
PAUSE_S: Final = 0.001
"""Between two pieces, and between two steps of looking."""
KNOWN_MAX: Final = 64
"""So many questions are known again, where the bus doubles them."""


class HotAnswer:
    """The answer to one question, as far as it has come."""

    def __init__(self, question: HotQuestion) -> None:
        self._question = question
        self._came = asyncio.Event()
        self._parts: dict[int, HotPiece] = {}
        self._count = 0
        self.complete = False

    def take(self, piece: HotPiece) -> None:
        """One more piece, in any order. One of another node, or of another answer than the first, is passed over."""
        first = next(iter(self._parts.values()), piece)
        if piece.node != self._question.answerer or piece.parts != first.parts or piece.part in self._parts:
            return
        if self._parts and not piece.names:
            return  # else endless pieces might lie here
        self._parts[piece.part] = piece
        self._count += len(piece.names)
        self.complete = len(self._parts) == piece.parts or self._count >= self._question.most_names
        self._came.set()

    async def next(self) -> None:
        """Return when another piece has come since the last return."""
        await self._came.wait()
        self._came.clear()

    @property
    def keys(self) -> list[HotKey]:
        """What has come, from the hottest on."""
        pieces = [piece for _, piece in sorted(self._parts.items())]
        told = [HotKey(*key) for piece in pieces for key in zip(piece.names, piece.sizes, strict=True)]
        return told[: self._question.most_names]


class HotTalk:
    """The questions of one process: those that it asks, and those that come to it."""

    def __init__(self, clock: Clock, node: str) -> None:
        """`node`: its id."""
        self._clock = clock
        self._node = node
        self._asked: dict[bytes, HotAnswer] = {}
        self._due: deque[tuple[int, HotQuestion, float]] = deque()
        self._came = asyncio.Event()
        self._known: deque[bytes] = deque(maxlen=KNOWN_MAX)
        self._allowed = float(BURST)
        self._allowed_at_s = clock()
        self.answers = False
        """Whether questions are answered: set once the node is warm."""

    @contextmanager
    def asking(self, question: HotQuestion) -> Iterator[HotAnswer]:
        """Gather the answer to a question inside the block."""
        answer = self._asked[question.id] = HotAnswer(question)
        try:
            yield answer
        finally:
            del self._asked[question.id]

    async def due(self) -> tuple[int, HotQuestion, float]:
        """The next question that is to be answered, with the shard over which it came, and when."""
        while not self._due:
            self._came.clear()
            await self._came.wait()
        return self._due.popleft()

    def take(self, index: int, message: bytes) -> None:
        """Take in a question or a piece of an answer; whatever its bytes are, this returns."""
        with suppress(CorruptInquiry):
            if message.startswith(HOT_QUESTION):
                self._take_question(index, message)
            elif (answer := self._asked.get(id_of(message))) is not None:
                answer.take(decode_hot_piece(message))

    def _take_question(self, index: int, message: bytes) -> None:
        if not self.answers or id_of(message) in self._known:
            return
        question = decode_hot_question(message)
        if question.answerer != self._node or not self._may_answer():
            return
        self._known.append(question.id)
        self._allowed -= 1
        self._due.append((index, question, self._clock()))
        self._came.set()

    def _may_answer(self) -> bool:
        now_s = self._clock()
        self._allowed = min(float(BURST), self._allowed + (now_s - self._allowed_at_s) / EVERY_S)
        self._allowed_at_s = now_s
        return self._allowed >= 1


class WarmUpLimits(NamedTuple):
    """How many keys are told or taken over at most, what their values take, and how long that may last."""

    keys: int
    bytes: int
    at_most_s: float


class HotAnswering:
    """One node's answers."""

    def __init__(self, node: Node, store: Store, bus: Bus, talk: HotTalk, limits: WarmUpLimits) -> None:
        self._node = node
        self._store = store
        self._bus = bus
        self._talk = talk
        self._limits = limits
        self._found: Sequence[HotKey] = ()
        self._found_at_s = float("-inf")

    async def step(self) -> None:
        """Wait for a question, and answer it. What can't be sent is not sent again: who asks goes on without."""
        index, question, at_s = await self._talk.due()
        if self._node.clock() - at_s > LATE_S:
            return
        hot = _within(await self._hottest(), question)
        with suppress(CacheBusError):
            for piece in pieces_of(self._node.id, hot):
                await self._send(index, question, piece)
                await asyncio.sleep(PAUSE_S)

    async def _hottest(self) -> Sequence[HotKey]:
        if self._node.clock() - self._found_at_s > FRESH_S:
            hottest = Hottest(self._node, self._limits.keys, self._limits.bytes)
            for _ in hottest.walk():
                await asyncio.sleep(PAUSE_S)
            self._found, self._found_at_s = hottest.found, self._node.clock()
        return self._found

    async def _send(self, index: int, question: HotQuestion, piece: HotPiece) -> None:
        message = piece.encode(question.id)
        if self._bus.store_publishes:
            await self._store.publish(index, message, to=question.id.decode())
        else:
            await self._bus.publish(index, message)


def _within(hot: Sequence[HotKey], question: HotQuestion) -> Sequence[HotKey]:
    """As many of them, from the hottest on, as who asks wants."""
    sums_bytes = accumulate(key.size_bytes for key in hot[: question.most_names])
    return hot[: sum(taken_bytes <= question.most_bytes for taken_bytes in sums_bytes)]
