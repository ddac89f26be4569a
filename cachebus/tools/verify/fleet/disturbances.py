"""What a node knows to have gone wrong with itself: it explains why a load was begun twice, and nothing else."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from cachebus import Cache
from cachebus.base.clock import Clock
from cachebus.tools.verify.fleet.history_log import HistoryLog
from cachebus.tools.verify.fleet.setup import LEASE_MS

STALLED, L2_FAILED, FLUSHED, GAP, LATE = range(1, 6)
DISTURBANCES: Final = {
    STALLED: "stalled",
    L2_FAILED: "got no answer from L2",
    FLUSHED: "dropped all it held",
    GAP: "heard what comes behind a gap",
    LATE: "was late",
}
EVERY_S: Final = 0.02
SAMPLES_KEPT: Final = 1_000
LATE_S: Final = 0.03
"""A loop that is so late has not the time that it needs, nor perhaps has the server: what is refused then, or heard of
late, is so for no fault of the library's."""
STALL_S: Final = LEASE_MS / 1000 / 4
"""A loop that stands still for longer may extend its leases too late."""


class LoopLag:
    """For how long a process's event loop stood still of late, each time for too short to be told."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque(maxlen=SAMPLES_KEPT)

    def note(self, at_s: float, late_s: float) -> None:
        """It was so late at this time."""
        self._late.append((at_s, late_s))

    def since(self, from_s: float) -> float:
        """All together, in s."""
        return sum(late_s for at_s, late_s in self._late if at_s > from_s)


async def watch(caches: Sequence[Cache], log: HistoryLog, clock: Clock, loop_lag: LoopLag) -> None:
    """Write down stalls of the event loop, failures of L2, and flushes, with the time in which they happened."""
    last_s, errors, flushes, gaps = clock(), 0, 0, 0
    while True:
        await asyncio.sleep(EVERY_S)
        now_s, stats = clock(), [cache.stats() for cache in caches]
        loop_lag.note(now_s, now_s - last_s - EVERY_S)
        if now_s - last_s > EVERY_S + STALL_S:
            log.add(STALLED, last_s, now_s)
        elif now_s - last_s > EVERY_S + LATE_S:
            log.add(LATE, last_s, now_s)
        failed, flushed = sum(each.l2_errors for each in stats), sum(sum(each.flushes.values()) for each in stats)
        if failed != errors or not all(each.l2_connected for each in stats):
            log.add(L2_FAILED, last_s, now_s)
        if flushed != flushes:
            log.add(FLUSHED, last_s, now_s)
        ahead = sum(each.gaps for each in stats)
        if ahead != gaps:
            log.add(GAP, last_s, now_s)
        last_s, errors, flushes, gaps = now_s, failed, flushed, ahead
