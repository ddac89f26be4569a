"""Flights of this node that wait for another node's load, and what wakes them.

1. A hint on the bus tells that the load has ended: all who wait for the key ask L2 at once.
2. No hint comes. Each asks again when its pause is over, in turn with all others.
3. Its patience is over: it asks no more.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

POLLS_PER_S: Final = 400
"""How often all who wait for other nodes' loads ask L2, together: forty of them are as quick as one alone."""
POLLS_AT_ONCE: Final = 16
"""How many may catch up at once after a pause, or a late timer."""


class Waiters:
    """All who wait, by key.

    Those whose pause is over ask in that order, and all together at most `POLLS_PER_S` times a second: each of them
    would be polite alone, and thousands are a flood.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[bool]]] = {}
        self._line: OrderedDict[asyncio.Future[bool], None] = OrderedDict()
        """Those whose pause is over."""
        self._next_s = 0.0
        """When the next of them may ask, by the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def wake(self, key: str) -> None:
        """A hint has come: the fill is there, or was given up."""
        for waiter in self._waiting.get(key, ()):
            _resolve(waiter, True)

    async def wait(self, key: str, pause_s: float, patience_s: float) -> bool:
        """Wait until woken, or until it is this one's turn to ask again, `pause_s` seconds from now or later. Returns
        False when neither has happened in `patience_s` seconds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiting.setdefault(key, set()).add(waiter)
        pause = loop.call_later(pause_s, self._stand_in_line, waiter)
        patience = loop.call_later(patience_s, _resolve, waiter, False)
        try:
            return await waiter
        finally:
            pause.cancel()
            patience.cancel()
            self._line.pop(waiter, None)
            self._waiting[key].discard(waiter)
            if not self._waiting[key]:
                del self._waiting[key]

    def _stand_in_line(self, waiter: asyncio.Future[bool]) -> None:
        self._line[waiter] = None
        if self._timer is None:
            self._serve()

    def _serve(self) -> None:
        """Let those ask who may by now, and come back for the next of the line."""
        loop = asyncio.get_running_loop()
        self._timer, now_s = None, loop.time()
        self._next_s = max(self._next_s, now_s - POLLS_AT_ONCE / POLLS_PER_S)
        while self._line and self._next_s <= now_s:
            _resolve(self._line.popitem(last=False)[0], True)
            self._next_s += 1 / POLLS_PER_S
        if self._line:
            self._timer = loop.call_at(self._next_s, self._serve)


def _resolve(waiter: asyncio.Future[bool], turn: bool) -> None:
    if not waiter.done():
        waiter.set_result(turn)
