"""Whoever answers at an address that was ours, and is of another cluster by now."""

from __future__ import annotations

from typing import Final

from cachebus.base.clock import Clock

BELIEVED_S: Final = 30.0
"""So long strangers alone must have answered until they are believed: our own cluster was set up anew."""


class Strangers:
    """Since when strangers alone have answered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s: float | None = None

    def ours_answered(self) -> None:
        """One of our own cluster has answered."""
        self._since_s = None

    def are_believed(self) -> bool:
        """A stranger has answered: whether it is to be believed."""
        now_s = self._clock()
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= BELIEVED_S
