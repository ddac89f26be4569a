"""Memory is given back between reads, in steps that leave the event loop to others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cachebus.base.log import logger
from cachebus.core.node import Node

SWEEP_PAUSE_S = 0.002
SWEEP_REST_S = 0.02
"""After a sweep, for each of its slices: a flood of scope drops costs at most a twentieth of the loop's time."""
TIDY_S = 10.0
"""At least so often what is too old to be repeated goes, also while nothing happens."""
PAUSES_MAX = 60
"""After so many a sweep begins although nothing was dropped: for what has expired."""


class Tidying:
    """Sweeps L1 after drops, and now and then for what has expired."""

    def __init__(self, node: Node, forget_old: Callable[[], object], *, pause_s: float) -> None:
        """`forget_old`: gives back the memory of what need not be repeated any more; called after each pause."""
        self._node = node
        self._forget_old = forget_old
        self._pause_s = min(pause_s, TIDY_S)

    async def step(self) -> None:
        """Wait until there is something to sweep, and sweep once."""
        for _ in range(PAUSES_MAX):
            await asyncio.sleep(self._pause_s)
            self._forget_old()
            logger.tell_withheld()
            if self._node.groups.untidy:
                break
        slices, began_s = 0, self._node.clock()
        for _ in self._node.sweep():
            slices += 1
            await asyncio.sleep(SWEEP_PAUSE_S)
        self._node.settle_doubts(began_s)
        await asyncio.sleep(slices * SWEEP_REST_S)
