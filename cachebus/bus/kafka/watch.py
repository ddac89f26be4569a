"""Where the topic's partitions are: looked at to begin with, then every few seconds, and soon where one is missed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from cachebus.base.backoff import Attempts, Backoff
from cachebus.base.clock import Clock
from cachebus.base.ignored import ignore_error
from cachebus.base.kept import kept
from cachebus.base.log import logger
from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.client import KafkaAccess, quietly
from cachebus.bus.kafka.connection import BrokerAddress, KafkaConnection
from cachebus.bus.kafka.topic import TopicLayout, ensure, read_layout
from cachebus.errors import CacheBusError
from cachebus.resp import ended, shared

METADATA_AGE_S: Final = 5.0
"""So old may be what is known of the topic's partitions."""
LOOK_AGAIN_S: Final = 1.0
"""The longest pause between two looks where a partition is missed."""
BELIEVED: Final = 8
"""So often in a row one broker is asked that does not help: what it knows may be old."""


class TopicWatch:
    """Tells `on_layout` of every reading."""

    def __init__(self, access: KafkaAccess, clock: Clock, on_layout: Callable[[TopicLayout], object]) -> None:
        self._access = access
        self._on_layout = on_layout
        self._brokers = Brokers(access)
        self._attempts = Attempts(clock)
        self._opening: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._missed = asyncio.Event()

    async def open(self) -> None:
        """Make the topic if need be, and begin to watch it, unless that is done. All who call share one attempt, which
        waits for the pause after the last. `BusUnavailable`, `ConfigError`."""
        if self._keeping is not None:
            return
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="cachebus-kafka-open")
            self._opening.add_done_callback(ignore_error)
        await shared(self._opening)

    async def _open(self) -> None:
        await asyncio.sleep(self._attempts.wait_s)
        with quietly():
            try:
                layout = await ensure(self._access, self._brokers)
            except Exception:
                self._attempts.failed()
                raise
            self._keeping = kept(partial(self._keep, layout), "cachebus-kafka-watch")
            self._on_layout(layout)

    async def connected(self, address: BrokerAddress) -> KafkaConnection:
        """See `Brokers.connected`."""
        return await self._brokers.connected(address)

    def miss(self) -> None:
        """A partition can't be reached where it was: have it looked for."""
        self._missed.set()

    async def _keep(self, layout: TopicLayout) -> None:
        pauses, vain = Backoff(max_s=LOOK_AGAIN_S), 0
        while True:
            calm = await self._pause(layout, pauses)
            vain = 0 if calm else vain + 1
            try:
                if vain % BELIEVED == BELIEVED - 1:
                    await self._brokers.forget()
                layout = await self._read_layout()
                self._on_layout(layout)
            except CacheBusError as error:  # who misses a partition tells of it
                logger.debug("{}", error)
                self._missed.set()
            except Exception:  # noqa: BLE001 (logged with its trace; it must go on)
                logger.exception("could not look at Kafka's topic; it is tried again")
                self._missed.set()

    async def _pause(self, layout: TopicLayout, pauses: Backoff) -> bool:
        """Wait until the next reading is due; whether nobody had missed anything."""
        if None not in layout.leaders:
            try:
                async with asyncio.timeout(METADATA_AGE_S):
                    await self._missed.wait()
            except TimeoutError:
                pauses.reset()
                return True
        await asyncio.sleep(pauses.next_s())
        pauses.longer()
        self._missed.clear()
        return False

    async def _read_layout(self) -> TopicLayout:
        layout = await read_layout(self._access, self._brokers)
        return layout if layout.leaders else await ensure(self._access, self._brokers)

    async def close(self) -> None:
        """End it, and give the connection back; it may be opened again."""
        try:
            await ended(self._opening, self._keeping)
        finally:
            self._opening = self._keeping = None
            await self._brokers.forget()
