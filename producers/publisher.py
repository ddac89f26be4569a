"""Publishes a producer's events on a bus that L2 does not feed by itself (Kafka), after L2 has taken them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from cachebus.base.clock import Clock
from cachebus.base.log import logger
from cachebus.core.ports import Bus
from cachebus.errors import BusUnavailable, CacheBusError

TRY_EVERY_S: Final = 1.0


class Publisher:
    """Publishes while the bus is connected, and reconnects in the background. If an event is lost, the nodes find it by
    their probes."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._connecting: asyncio.Task[None] | None = None
        self._tried_at_s = float("-inf")

    async def open(self) -> None:
        """Connect. If no broker answers, that is logged, and tried again later. `ConfigError` for a wrong set-up."""
        try:
            await self._bus.connect()
        except BusUnavailable as error:
            logger.warning("producing without the bus, or part of it, which is tried again: {}", error)
        self._tried_at_s = self._clock()

    async def publish(self, shard: int, message: bytes) -> None:
        """Publish the event of a change that L2 has taken; returns at once."""
        if not self._bus.connected:
            self._reconnect()
        await self._bus.publish(shard, message)

    def _reconnect(self) -> None:
        busy = self._connecting is not None and not self._connecting.done()
        if not busy and self._clock() - self._tried_at_s >= TRY_EVERY_S:
            self._tried_at_s = self._clock()
            self._connecting = asyncio.create_task(self._try(), name="cachebus-publisher")

    async def _try(self) -> None:
        try:
            await self._bus.connect()
        except CacheBusError as error:
            logger.debug("the bus is still out of reach: {}", error)
        except Exception:  # noqa: BLE001 (logged with its trace; the next publication tries again)
            logger.exception("the bus could not be connected to; it is tried again")

    async def close(self) -> None:
        """Send what is buffered, as far as the bus takes it in time, and disconnect."""
        if self._connecting is not None:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError):
                await self._connecting
        await self._bus.close()
