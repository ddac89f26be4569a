"""Pauses between attempts that grow while they fail."""

from __future__ import annotations

import random
from typing import Final

from cachebus.base.clock import Clock

RECONNECT_FIRST_S: Final = 0.05
RECONNECT_MAX_S: Final = 2.0
"""How long to wait before connecting again: the first pause, doubled after each failure up to the longest."""


class Backoff:
    """Pauses between attempts, in seconds: each up to twice the one before, and jittered, so that a fleet that lost its
    server together does not come back in step."""

    def __init__(self, first_s: float = RECONNECT_FIRST_S, max_s: float = RECONNECT_MAX_S) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._now_s = first_s

    def next_s(self) -> float:
        """The pause to make now: half to all of what it has grown to."""
        return self._now_s * random.uniform(0.5, 1.0)

    def longer(self) -> None:
        """An attempt was made."""
        self._now_s = min(2 * self._now_s, self._max_s)

    def reset(self) -> None:
        """It has succeeded."""
        self._now_s = self._first_s


class Attempts:
    """When what has to be made again and again may be tried next. Pauses grow while it can't be made, and also while it
    is lost soon after: who is let in only to be thrown out would else come back for ever at the pace of the first
    pause, and each time cost what a success costs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pauses = Backoff()
        self._next_s = float("-inf")
        self._made_s: float | None = None

    @property
    def wait_s(self) -> float:
        """How long the next attempt has to wait, in seconds; 0 where it may begin now."""
        return max(0.0, self._next_s - self._clock())

    @property
    def made(self) -> bool:
        """Whether the last attempt was a success that has not `failed`."""
        return self._made_s is not None

    def succeeded(self) -> None:
        """What was to be made works; that it goes on working makes it no younger."""
        if self._made_s is None:
            self._made_s = self._clock()

    def failed(self) -> None:
        """An attempt has failed, or what it made is lost. Pauses begin anew behind what has outlived the longest."""
        if self._made_s is not None and self._clock() - self._made_s >= RECONNECT_MAX_S:
            self._pauses.reset()
        self._made_s = None
        self._next_s = self._clock() + self._pauses.next_s()
        self._pauses.longer()
