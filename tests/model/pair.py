"""Two nodes over one shared memory, by a clock of the test's: what the small worlds of fallbacks are played on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from cachebus import Cache, Settings
from cachebus.assembly.world import World
from cachebus.testing import FakeClock
from tests.support.caches import parts


class Pair(NamedTuple):
    """Two open caches that send no probe of their own."""

    first: Cache
    second: Cache
    world: World
    clock: FakeClock


@asynccontextmanager
async def pair(settings: Settings) -> AsyncIterator[Pair]:
    """They are closed behind it."""
    clock = FakeClock()
    world = World(Settings(max_invalidated_scopes=100, log_max_len=100), clock)
    first, second = (Cache(settings, world=world, clock=clock) for _ in range(2))
    async with first, second:
        for cache in (first, second):
            parts(cache).listening.heartbeat.cancel()
        yield Pair(first, second, world, clock)


async def settled() -> None:
    """All that can be done without the clock is done."""
    for _ in range(8):
        await asyncio.sleep(0)
