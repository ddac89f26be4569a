"""One timer a connection that notices a server which took a question and never answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_TICKS: Final = 8


class Watchdog:
    """Calls `expired` when the oldest unanswered question is more than `timeout_s` old (at most 1.25 times that).

    It keeps no time for a question: it samples how many were asked, eight times in `timeout_s`, and looks whether
    those of nine samples ago were answered since. Ticks are counted, not the clock read: a loop that was held for
    seconds has read the replies which came meanwhile before the ninth tick, so its own pause is not the server's.
    Between questions there is no timer at all.
    """

    __slots__ = ("_expired", "_loop", "_progress", "_samples", "_tick_s", "_timer", "asleep")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        progress: Callable[[], tuple[int, int]],
        expired: Callable[[], None],
    ) -> None:
        """`progress` gives how many questions were ever asked and how many answered."""
        self._loop = loop
        self._tick_s = timeout_s / _TICKS
        self._progress = progress
        self._expired = expired
        self._samples: deque[int] = deque(maxlen=_TICKS + 1)
        self._timer: asyncio.TimerHandle | None = None
        self.asleep = True

    def wake(self) -> None:
        """Begin to watch; called when there is a question and the dog is asleep."""
        self.asleep = False
        self._samples.clear()
        self._samples.append(self._progress()[0])
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.asleep = True

    def _tick(self) -> None:
        asked, answered = self._progress()
        samples = self._samples
        if asked == answered:
            self.asleep = True
            return
        if len(samples) == samples.maxlen and samples[0] > answered:
            self._expired()
            return
        samples.append(asked)
        self._timer = self._loop.call_later(self._tick_s, self._tick)
