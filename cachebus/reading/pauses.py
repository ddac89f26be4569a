"""What a node does of itself for a key, and not again at once: a limit of its rate, which says nothing of a source."""

from __future__ import annotations

import random
from collections import OrderedDict

from cachebus.base.clock import Clock
from cachebus.reading.cooldown import JITTER, KEYS_MAX


class Pauses:
    """Until when what has this name is not tried again; of the latest names, where there are too many.

    A pause is tied to a version: for another one it may be tried at once.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pauses: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pauses)

    def begin(self, name: str, pause_s: float, version: bytes = b"") -> None:
        """It is not tried again for about `pause_s` seconds."""
        self._pauses.pop(name, None)
        self._pauses[name] = self._clock() + pause_s * random.uniform(1 - JITTER, 1 + JITTER), version
        if len(self._pauses) > KEYS_MAX:
            self._pauses.popitem(last=False)

    def has(self, name: str, version: bytes = b"") -> bool:
        """Whether it is not to be tried now."""
        pause = self._pauses.get(name)
        if pause is None or pause[1] != version:
            return False
        if self._clock() < pause[0]:
            return True
        del self._pauses[name]
        return False
