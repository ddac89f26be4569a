"""The one place that reads a clock: everything else is given one, so that tests can turn the hands.

`monotonic` is the builtin itself, not a wrapper: it is read on every hit, and a Python frame around it would cost
more than the dictionary look-up it guards. Unit: seconds, as float. Never compared between machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Gives seconds on a clock that never goes back."""

monotonic: Clock = time.monotonic
perf_counter: Clock = time.perf_counter


def wall_s() -> float:
    """Seconds since 1970 by this machine's wall clock: for logs and for humans, never for a decision."""
    return time.time()


def boottime_s() -> float:
    """Seconds since boot, those of a suspended machine included (equal to `monotonic` where there is no such clock)."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)
