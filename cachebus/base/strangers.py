"""Whoever answers at an address that was ours, and is of another cluster by now."""

from __future__ import annotations

from typing import Final

from cachebus.base.clock import Clock

BELIEVED_S: Final = 30.0
"""So long most addresses must have been strangers', at each look, until these are believed: ours was set up anew."""
BROKEN_OFF_S: Final = 15.0
"""A row of rounds has ended where none began for so long."""


class Strangers:
    """Since when, in a row of rounds, most addresses have been strangers' and none of our own cluster answered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s: float | None = None
        self._last_s = float("-inf")

    def note_round(self, *, most_are_strange: bool) -> None:
        """A round of questions has ended. Once one of ours has answered in it, or most addresses were silent, it all
        begins anew."""
        now_s = self._clock()
        if not most_are_strange or now_s - self._last_s > BROKEN_OFF_S:
            self._since_s = None
        if most_are_strange:
            self._since_s, self._last_s = now_s if self._since_s is None else self._since_s, now_s

    @property
    def are_believed(self) -> bool:
        """Whether that is so long now that they are believed."""
        return self._since_s is not None and self._last_s - self._since_s >= BELIEVED_S
