"""How long a worker has looked for items: what rests comes again when it does, and at no other time."""

from __future__ import annotations

from typing import Final

from cachebus.base.clock import Clock, monotonic

LONGEST_S: Final = 5.0
"""No more counts for a look that did not go through all: what rests may lie behind."""


class WorkTime:
    """A clock that stands still while nothing is looked for: while L2 or the source is away, or until the next poll. An
    item that has not come again says nothing then."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._worked_s = 0.0
        self._last_s = clock()

    def looked(self, *, through: bool) -> None:
        """Items were looked for, and what came is about to be noted. `through`: whether no more were due."""
        now_s = self._clock()
        since_s = now_s - self._last_s
        self._worked_s += since_s if through else min(LONGEST_S, since_s)
        self._last_s = now_s

    def __call__(self) -> float:
        """The seconds that count."""
        return self._worked_s
