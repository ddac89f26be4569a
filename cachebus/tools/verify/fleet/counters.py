"""A counter for each node, to check that an increment with a request id counts once, however often it is sent."""

from __future__ import annotations

import asyncio
from typing import Final

from cachebus import Cache, CacheBusError
from cachebus.base.clock import Clock
from cachebus.tools.verify.fleet.anomalies import COUNTED_TWICE, Anomalies
from cachebus.tools.verify.fleet.data_types import TTL_S
from cachebus.tools.verify.fleet.items import SourceItem

EVERY_S: Final = 0.02


class CounterLoop:
    """Increments one counter until told to stop."""

    def __init__(self, cache: Cache, item: SourceItem, name: str, anomalies: Anomalies, clock: Clock) -> None:
        self._cache, self._item, self._name, self._anomalies, self._clock = cache, item, name, anomalies, clock
        self._stopping = False
        self.counted = 0

    def stop(self) -> None:
        """Begin no further increment."""
        self._stopping = True

    async def run(self) -> None:
        """Run until stopped."""
        while not self._stopping:
            await self._count(self.counted + 1)
            await asyncio.sleep(EVERY_S)

    async def _count(self, number: int) -> None:
        """Send one increment until it returns. Each attempt may have reached L2."""
        while not self._stopping:
            at_s = self._clock()
            try:
                stands = await self._cache.increment(
                    "verified", self._item.tenant, resource_id=self._name, expires_in_s=TTL_S, request_id=f"{number}"
                )
            except CacheBusError:
                await asyncio.sleep(EVERY_S)
                continue
            self.counted = number
            if stands > number:
                self._anomalies.note(COUNTED_TWICE, self._item, at_s, ab=(stands, number))
            return
