"""One timer a connection that notices a server which took a question and of which nothing is heard any more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

_TICKS: Final = 16


class ConnectionProgress(NamedTuple):
    """How far a connection is. All of these only grow, but for `sent_bytes`."""

    asked: int
    """Questions ever asked."""
    answered: int
    """Those that were answered."""
    last_reply_s: float
    """Differs whenever bytes have arrived."""
    written: int
    """Where in the stream of bytes the last question asked ends."""
    sent_bytes: int
    """Of the stream: what has left this machine."""


class Watchdog:
    """Calls `expired` when an answer is due and no sign of life came for `timeout_s` (at most an eighth more).

    Bytes that arrive are a sign of life, be they of another's answer or a part of a big one. So are bytes that leave,
    as long as they are of the oldest question: what is asked after it proves nothing, since the system takes and even
    acknowledges bytes for a program that hangs.

    It keeps no time for a question: it looks sixteen times in `timeout_s`. Ticks are counted, not the clock read: a
    loop that was held for seconds has read the bytes which came meanwhile before the last tick, so its own pause is not
    the server's. Between questions there is no timer at all.
    """

    __slots__ = ("_ends", "_expired", "_last", "_loop", "_progress", "_quiet", "_tick_s", "_timer", "asleep")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        progress: Callable[[], ConnectionProgress],
        expired: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._tick_s = timeout_s / _TICKS
        self._progress = progress
        self._expired = expired
        self._last = ConnectionProgress(0, 0, 0.0, 0, 0)
        self._ends: deque[tuple[int, int]] = deque()
        """Of each tick that saw new questions: how many had been asked, and where the last of them ends."""
        self._quiet = 0
        self._timer: asyncio.TimerHandle | None = None
        self.asleep = True

    def wake(self) -> None:
        """Begin to watch; called when a question was written and the dog is asleep."""
        self.asleep = False
        self._last = now = self._progress()
        self._ends.clear()
        self._ends.append((now.asked, now.written))
        self._quiet = -1  # the first tick comes a whole tick from now, those after a byte come sooner
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.asleep = True

    def _tick(self) -> None:
        now = self._progress()
        if now.asked == now.answered:
            self.asleep = True
            return
        self._quiet = 0 if self._lives(now) else self._quiet + 1
        if self._quiet >= _TICKS:
            self._expired()
            return
        if now.asked != self._last.asked:
            self._ends.append((now.asked, now.written))
        self._last = now
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def _lives(self, now: ConnectionProgress) -> bool:
        """Whether anything came since the last tick, or left of a question that was the oldest then and still is."""
        last, ends = self._last, self._ends
        while ends and ends[0][0] <= now.answered:
            ends.popleft()
        return now.last_reply_s != last.last_reply_s or bool(
            ends and last.sent_bytes < ends[0][1] and now.sent_bytes > last.sent_bytes
        )
