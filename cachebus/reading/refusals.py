"""What L2 refuses while it is there, as for want of a right. Of outages who probes tells; of this, nobody else: leases
live on, loads go on without L2, and only those who write are told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from cachebus.base.clock import Clock
from cachebus.base.log import logger
from cachebus.errors import L2Unavailable
from cachebus.observe import Counters
from cachebus.resp.replies import code_of

Asked = Literal["reads", "fills", "values", "invalidations", "write guards", "counters"]
"""What was asked of L2: to give a value, to keep one that was loaded; or what was to be written."""
PASSING: Final = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "NOREPLICAS", "READONLY", "TRYAGAIN")
"""In refusals that end by themselves, as during a failover: they may lie in the text of another."""
TELL_EVERY_S: Final = 60.0
_WRITES: Final = "these calls raise, or wait; see `cachebus doctor --probe-writes`"
COSTS: Final[dict[Asked, str]] = {
    "reads": "callers are told, or load from the source; see `cachebus doctor`",
    "fills": "each node loads for itself; see `cachebus doctor`",
    "values": _WRITES,
    "invalidations": _WRITES,
    "write guards": _WRITES,
    "counters": _WRITES,
}
_NUMBERS: Final = re.compile(r"[0-9a-f]{40}|\d+")
_MOST: Final = 4096


class RefusalLog:
    """Those of one node: counted, told once a minute for each type and reason, and remembered for `health()`."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        self._clock = clock
        self._counters = counters
        self._last: dict[Asked, tuple[float, str]] = {}
        self._told_s: dict[tuple[Asked, str, str], float] = {}

    def count(self, error: L2Unavailable, asked: Asked, data_type: str) -> None:
        """L2 did not do what a caller asked of it, of values of this type."""
        self._counters.l2_errors += 1
        self._note(error, asked, data_type)

    @contextmanager
    def of(self, asked: Asked, data_type: str = "") -> Iterator[None]:
        """Note what becomes of a write, which its caller counts. What was refused is over once one is done."""
        try:
            yield
        except L2Unavailable as error:
            self._note(error, asked, data_type)
            raise
        if self._last:
            self._last.pop(asked, None)

    def _note(self, error: L2Unavailable, asked: Asked, data_type: str) -> None:
        why = str(error)
        if not code_of(error) or any(word in why for word in PASSING):
            return
        now_s = self._clock()
        self._last[asked] = now_s, why
        kind = asked, data_type, _NUMBERS.sub("0", why)
        if now_s - self._told_s.get(kind, float("-inf")) < TELL_EVERY_S:
            return
        if len(self._told_s) >= _MOST:
            self._told_s.clear()
        self._told_s[kind] = now_s
        logger.warning("L2 refuses {} of {}: {}: {}", asked, data_type or "this node", why, COSTS[asked])

    def lately(self) -> list[str]:
        """What was refused in the last minute, the last of each kind, in words."""
        since_s = self._clock() - TELL_EVERY_S
        last = {asked: why for asked, (at_s, why) in tuple(self._last.items()) if at_s > since_s}
        return [
            f"L2 has refused {asked} in the last minute: {last[asked]}: {cost}"
            for asked, cost in COSTS.items()
            if asked in last
        ]
