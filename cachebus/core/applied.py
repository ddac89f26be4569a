"""Who wants to know how far a node has applied events: tests and tools."""

from __future__ import annotations

from collections.abc import Callable

from cachebus.base.clock import Clock
from cachebus.base.log import logger
from cachebus.core.shard import Shard

OnApplied = Callable[[int, str, int, float], None]


class AppliedHook:
    """What is called with shard, epoch, seq and monotonic time (s) when a shard's applied seq moves."""

    __slots__ = ("_clock", "call")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.call: OnApplied | None = None

    def say(self, shard: Shard) -> None:
        """Call it; what it raises concerns nobody who writes, reads or listens here."""
        try:
            if self.call is not None:
                self.call(shard.index, shard.epoch.decode(), shard.applied, self._clock())
        except Exception:  # noqa: BLE001 (the user's; logged with its trace)
            logger.exception("on_applied has raised")
