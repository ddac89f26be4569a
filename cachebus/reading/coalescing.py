"""Calls of one tick of the event loop that load by the same source of many: it is called once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from cachebus.reading.joint import JointLoad


class Coalescing:
    """The joint loads that calls of this tick may share."""

    def __init__(self) -> None:
        self._open: dict[Hashable, tuple[JointLoad, list[object]]] = {}

    def joint(self, alike: Hashable, caller: object, most: int, make: Callable[[], JointLoad]) -> JointLoad:
        """The joint load for a caller. Those that are `alike` share one, up to `most` of them. `caller`: what must
        live as long as `alike` is compared."""
        if not self._open:
            asyncio.get_running_loop().call_soon(self._open.clear)
        known = self._open.get(alike)
        if known is None or len(known[1]) >= most:
            known = self._open[alike] = make(), []
        known[1].append(caller)
        return known[0]
