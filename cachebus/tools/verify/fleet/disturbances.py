"""Disturbances: what a node notices of its own troubles, such as a stalled event loop. The checker takes them for an
excuse where a promise allows one, as for a load that was begun twice."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from cachebus import Cache
from cachebus.base.clock import Clock
from cachebus.tools.verify.fleet.history_log import HistoryLog
from cachebus.tools.verify.fleet.setup import LEASE_MS

STALLED, L2_FAILED, FLUSHED, GAP, LATE, ENTERED = range(1, 7)
DISTURBANCES: Final = {
    STALLED: "stalled",
    L2_FAILED: "got no answer from L2",
    FLUSHED: "dropped all it held",
    GAP: "heard what comes behind a gap",
    LATE: "was late",
    ENTERED: "entered another epoch",
}
EVERY_S: Final = 0.02
SAMPLES_KEPT: Final = 1_000
LATE_S: Final = 0.03
"""A loop that is later than this lacks processor time, and the server may lack it too. That a read is refused then, or
an invalidation is late, is not the library's fault."""
STALL_S: Final = LEASE_MS / 1000 / 4
"""A loop that is later than this may extend its leases too late."""


class LoopLag:
    """How late the event loop was of late, also where that was too little for a disturbance."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._late: deque[tuple[float, float]] = deque(maxlen=SAMPLES_KEPT)
        self._noted_s = clock()

    def note(self, at_s: float, late_s: float) -> None:
        """The loop was late by `late_s` at this time."""
        self._late.append((at_s, late_s))
        self._noted_s = at_s

    def since(self, from_s: float) -> float:
        """The sum since this time, in seconds, with what is to be noted: after a stall answers come before that."""
        unnoted_s = self._clock() - max(self._noted_s, from_s) - EVERY_S
        return sum(late_s for at_s, late_s in self._late if at_s > from_s) + max(0.0, unnoted_s)


async def record_disturbances(caches: Sequence[Cache], log: HistoryLog, clock: Clock, loop_lag: LoopLag) -> None:
    """Record stalls of the event loop, failures of L2, flushes, gaps and new epochs, each with the span in which it
    happened."""
    last_s, errors, flushes, gaps, entries = clock(), 0, 0, 0, 0
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
        entered = sum(each.flushes.get("epoch", 0) for each in stats)
        if entered != entries:
            log.add(ENTERED, last_s, now_s)
        last_s, errors, flushes, gaps, entries = now_s, failed, flushed, ahead, entered
