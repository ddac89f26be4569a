"""What a publisher said lately, to be said again where another epoch has begun.

Replication is asynchronous: a primary that has been deposed without knowing it acknowledges what is lost with it.
Whoever then meets the new epoch repeats the last minute of its invalidations there; twice is as good as once.
"""

from __future__ import annotations

from collections import deque

from cachebus.clock import Clock
from cachebus.plan import Plan, joined

KEEP_S = 60.0
"""How far back: longer than any failover should take."""
MOST = 10_000
"""And how many at most, the latest."""


class Journal:
    """Plans that L2 has acknowledged, with the epoch in which it did."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: deque[tuple[float, bytes, Plan]] = deque(maxlen=MOST)

    def note(self, plan: Plan, epoch: bytes) -> None:
        """L2 has acknowledged this."""
        self._said.append((self._clock(), epoch, plan))

    def lost(self, shard: int, epoch: bytes) -> list[Plan]:
        """What was said lately of a shard in other epochs than the one it is in now, gathered into few plans."""
        since_s = self._clock() - KEEP_S
        while self._said and self._said[0][0] < since_s:
            self._said.popleft()
        return joined(plan for _, its, plan in self._said if plan.shard == shard and its != epoch)

    def repeated(self, shard: int, epoch: bytes, asked_s: float) -> None:
        """All that `lost` gave at that time has been said again."""
        kept = [entry for entry in self._said if entry[2].shard != shard or entry[1] == epoch or entry[0] > asked_s]
        self._said.clear()
        self._said.extend(kept)
