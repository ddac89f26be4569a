"""Pauses between attempts that grow while they fail."""

from __future__ import annotations

import random
from typing import Final

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
