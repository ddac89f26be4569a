"""Whether something is reached, for those who wait for it to be, and for those who wait for it to end."""

from __future__ import annotations

import asyncio

from cachebus.base.clock import Clock
from cachebus.bus.kafka.client import KafkaAccess
from cachebus.bus.kafka.connection import unavailable


class Reach:
    """Of one partition: to hear it, or to send to it."""

    def __init__(self, access: KafkaAccess, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._why: object = ""
        self._changed = asyncio.Event()
        self.there = False
        self._over = False

    @property
    def trouble(self) -> str:
        """Why it is not reached; "" where it is."""
        if self.there:
            return ""
        return str(unavailable(self._access, self._why or "it is being connected to"))

    def gained(self) -> None:
        """It is reached now."""
        if not self.there:
            self.there = True
            self._tell()

    def lost(self, why: object) -> None:
        """It is reached no more, or an attempt has failed, for this reason: an error, or a text."""
        self.there = False
        self._why = why
        self._tell()

    def end(self, why: object) -> None:
        """There is no such partition any more. Who waits is told, and asks for another one."""
        self._over = True
        self.lost(why)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def gain(self) -> None:
        """Returns when it is reached; `BusUnavailable` for an attempt that fails. A topic just made has no leaders yet,
        and a leader may be moving: so the first failures are waited out, for half of `connect_timeout_s`."""
        patient_until_s = self._clock() + self._access.connect_timeout_s / 2
        while not self.there:
            if not self._over:
                await self._changed.wait()
            if self._over or (not self.there and self._clock() >= patient_until_s):
                raise unavailable(self._access, self._why)

    async def loss(self) -> None:
        """Returns when it is not reached, or was not for a moment."""
        if self.there:
            await self._changed.wait()
