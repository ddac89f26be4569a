"""What this node remembers of sources, by key.

1. `Cooldowns`: a source has just failed a key. Whoever has an older value to give leaves it alone for a while.
2. `Superseded`: a source has answered what L2 does not have. An older value is no fallback any more.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from enum import Enum

from cachebus.base.clock import Clock

KEYS_MAX = 10_000
JITTER = 0.25


class Superseded:
    """When the source has last answered what L2 was not told, or did not keep, by key: what is older is no fallback.

    Where there are too many keys, it knows the latest. Of the others it says that the source may have answered until
    the last of them was forgotten: that costs them a fallback, and brings nothing back.
    """

    def __init__(self) -> None:
        self._at_ms: OrderedDict[str, int] = OrderedDict()
        self._low_ms = -1

    def note(self, name: str, at_ms: int) -> None:
        """The source answered a load that began then, on the L2 server's clock."""
        self._at_ms[name] = max(at_ms, self._at_ms.pop(name, -1))
        if len(self._at_ms) > KEYS_MAX:
            self._low_ms = max(self._low_ms, self._at_ms.popitem(last=False)[1])

    def covers(self, name: str, created_ms: int) -> bool:
        """Whether the source has answered since this was created."""
        return created_ms <= self._at_ms.get(name, self._low_ms)


class Cooldown(Enum):
    """What is known of a key's source."""

    NONE = "nothing against it"
    ACTIVE = "it failed just now"
    OVER = "it failed, and may be tried again: by one, for which nobody waits"


class Cooldowns:
    """The keys whose sources are left alone on this node for a while, by name; the latest, where there are too many.

    A cool-down is tied to the version that is served meanwhile. Where another one is served, by whatever way it came,
    the source has answered somebody since: nobody has to remember to end it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spans: OrderedDict[str, tuple[float, float, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._spans)

    def begin(self, name: str, cooldown_s: float, version: bytes, *, heed_s: float = 0.0) -> float:
        """The source failed: it is left alone for about `cooldown_s` seconds, by those who serve this version; b"" is
        none, and nobody leaves it alone. As long again, or for `heed_s`, that is `OVER`. Returns how long it lasts, in
        seconds."""
        cooldown_s *= random.uniform(1 - JITTER, 1 + JITTER)
        self._spans.pop(name, None)
        if version:
            now_s = self._clock()
            self._spans[name] = now_s + cooldown_s, now_s + cooldown_s + max(cooldown_s, heed_s), version
        if len(self._spans) > KEYS_MAX:
            self._spans.popitem(last=False)
        return cooldown_s

    def end(self, name: str) -> None:
        """The source has answered."""
        self._spans.pop(name, None)

    def saw(self, name: str, version: bytes) -> None:
        """This version is there, though not for everybody who reads: what is tied to another one is over."""
        span = self._spans.get(name)
        if span is not None and span[2] != version:
            del self._spans[name]

    def of(self, name: str, version: bytes) -> Cooldown:
        """How it is now, for who has this version to serve."""
        span = self._spans.get(name)
        if span is None or span[2] != version:
            return Cooldown.NONE
        now_s, (active_until_s, over_until_s, _) = self._clock(), span
        if now_s < active_until_s:
            return Cooldown.ACTIVE
        if now_s < over_until_s:
            return Cooldown.OVER
        del self._spans[name]  # so long ago that it says nothing any more
        return Cooldown.NONE
