"""Sources that have just failed a key, and are left alone for a while by those who have something to give meanwhile."""

from __future__ import annotations

import random
from collections import OrderedDict
from enum import Enum

from cachebus.clock import Clock

KEYS_MAX = 10_000
JITTER = 0.25


class Rest(Enum):
    """What is known of a key's source."""

    NONE = "nothing against it"
    RESTS = "it failed just now"
    OVER = "it failed, and may be tried again: in the background, by one"


class Rests:
    """The keys whose source rests on this node, by their L1 names; the latest, where there are too many."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spans: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._spans)

    def begin(self, name: str, rest_s: float) -> float:
        """The source failed: it rests for about so long. Gives for how long, in seconds."""
        rest_s *= random.uniform(1 - JITTER, 1 + JITTER)
        self._spans.pop(name, None)
        now_s = self._clock()
        self._spans[name] = now_s + rest_s, now_s + 2 * rest_s
        if len(self._spans) > KEYS_MAX:
            self._spans.popitem(last=False)
        return rest_s

    def end(self, name: str) -> None:
        """The source has answered, here or on another node."""
        self._spans.pop(name, None)

    def of(self, name: str) -> Rest:
        """How it is now."""
        span = self._spans.get(name)
        if span is None:
            return Rest.NONE
        now_s, (rests_until_s, over_until_s) = self._clock(), span
        if now_s < rests_until_s:
            return Rest.RESTS
        if now_s < over_until_s:
            return Rest.OVER
        del self._spans[name]  # so long ago that it says nothing any more
        return Rest.NONE
