"""The one place that reads a clock: everything else is given one, so that tests can turn the hands.

`monotonic` is the builtin itself, not a wrapper: it is read on every hit, and a Python frame around it would cost
more than the dictionary look-up it guards. Unit: seconds, as float. Never compared between machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Gives seconds on a clock that never goes back."""

monotonic: Clock = time.monotonic
perf_counter: Clock = time.perf_counter


def wall_s() -> float:
    """Seconds since 1970 by this machine's wall clock: for logs and for humans, never for a decision."""
    return time.time()


def boottime_s() -> float:
    """Seconds since boot, those of a suspended machine included (equal to `monotonic` where there is no such clock)."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


WALL_S = 1.6e9
"""About what a server's clock shows where ours shows 0, until it has told: it is a wall clock. So no time on it is
below zero, whatever our monotonic clock began with."""


class OtherClock:
    """What a question and its answer tell of another machine's clock: `offset_s` is that clock less ours.

    An answer that took `t` seconds is sure to `t / 2`. A worse one than what is known (it lay about in a stalled
    loop) is kept out, unless the two contradict each other: then that clock was set, and the newer one is right.
    """

    __slots__ = ("_at_s", "_error_s", "offset_s")

    DRIFT = 1e-3
    """How fast what is known grows old, in seconds per second: more than any clock's own drift."""

    def __init__(self) -> None:
        self.offset_s = WALL_S
        self._error_s = float("inf")
        self._at_s = 0.0

    def error_s(self, at_s: float) -> float:
        """By how much `offset_s` may be wrong at a moment of ours, past or future; infinity before the first answer."""
        return self._error_s + self.DRIFT * abs(at_s - self._at_s)

    def earliest_s(self, theirs_s: float) -> float:
        """When, on our clock, theirs showed `theirs_s` at the earliest; -infinity before the first answer. Right as
        long as their clock is not set in between."""
        at_s = theirs_s - self.offset_s
        return at_s - self.error_s(at_s)

    def shown_s(self, at_s: float) -> float:
        """What theirs showed at a moment of ours, at the earliest; a wall clock's, so 0 before the first answer."""
        return max(0.0, at_s + self.offset_s - self.error_s(at_s))

    def learn(self, theirs_s: float, asked_s: float, now_s: float) -> None:
        """Their clock showed `theirs_s` between `asked_s` and `now_s` of ours."""
        offset_s, error_s = theirs_s - (asked_s + now_s) / 2, (now_s - asked_s) / 2
        known_s = self.error_s(now_s)
        if error_s <= known_s or abs(offset_s - self.offset_s) > error_s + known_s:
            self.offset_s, self._error_s, self._at_s = offset_s, error_s, now_s
