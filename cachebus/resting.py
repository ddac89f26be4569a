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
        self._until_s: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until_s)

    def begin(self, name: str, rest_s: float) -> float:
        """The source failed: it rests for about so long. Gives for how long, in seconds."""
        rest_s *= random.uniform(1 - JITTER, 1 + JITTER)
        self._until_s.pop(name, None)
        self._until_s[name] = self._clock() + rest_s
        if len(self._until_s) > KEYS_MAX:
            self._until_s.popitem(last=False)
        return rest_s

    def end(self, name: str) -> None:
        """The source has answered."""
        self._until_s.pop(name, None)

    def of(self, name: str) -> Rest:
        """How it is now."""
        until_s = self._until_s.get(name)
        if until_s is None:
            return Rest.NONE
        return Rest.RESTS if self._clock() < until_s else Rest.OVER
