"""A small world of a fallback and an invalidation: every schedule of it, played over the real code and memory.

A reader's node has a value that is past its expiry, so it may be a fallback. From some moment on it hears no event and
sends no probe. A caller comes whenever it likes, with L2 in reach or not, and the source hangs. The value is
invalidated elsewhere, whenever that is. D after that the source fails: nobody may be given the value any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from cachebus import L2Unavailable, Policy, Settings
from tests.model.pair import pair, settled
from tests.support.caches import Source, parts

D = 3
"""The staleness bound, in ticks; a tick is a second."""
LIFE = 1
"""How long the value lives before it is a fallback."""
POLICY = Policy(ttl_s=LIFE, fail_safe_s=3600, retries=0, load_timeout_s=600, fail_safe_throttle_s=60)
SETTINGS = Settings(
    url="memory://",
    staleness_bound_s=D,
    probe_interval_s=0.5,
    gap_grace_s=0.0,
    lease_ms=60_000,
    policies={"config": POLICY},
)


class AgeSchedule(NamedTuple):
    """When the caller comes, and the invalidation, in ticks since the value was loaded; and whether the caller's node
    reaches L2 then, and the last caller's when the source has failed."""

    comes: int
    invalidated: int
    away: bool
    away_after: bool

    def __str__(self) -> str:
        reach = "cut off" if self.away else "with L2", "cut off" if self.away_after else "with L2"
        return f"a caller at {self.comes} {reach[0]}, the invalidation at {self.invalidated}, the last one {reach[1]}"


def schedules() -> Iterator[AgeSchedule]:
    """Every one of them."""
    for comes in range(LIFE, LIFE + D + 1):
        for invalidated in range(LIFE, LIFE + D + 1):
            for away in (False, True):
                for away_after in (False, True):
                    yield AgeSchedule(comes, invalidated, away, away_after)


async def broken(schedule: AgeSchedule) -> str:
    """Who was given the value though it was invalidated D ago; "" for nobody."""
    async with pair(SETTINGS) as (reader, writer, world, clock):
        source = Source(x="old")
        assert await reader.get_or_load("config", "x", source.load, "acme") == "old"
        await reader.probe()
        await parts(reader).bus.close()
        source.values["x"] = "new"
        source.hold()
        slow: asyncio.Task[Any] | None = None
        for tick in range(schedule.invalidated + D + 1):
            if tick == schedule.comes:
                world.shards.away = schedule.away
                slow = asyncio.create_task(reader.get_or_load("config", "x", source.load, "acme"))
                await settled()
                world.shards.away = False
            if tick == schedule.invalidated:
                await writer.invalidate("config", "x", "acme")
            if tick < schedule.invalidated + D:
                clock.advance(1.0)
        world.shards.away = schedule.away_after
        late = asyncio.create_task(reader.get_or_load("config", "x", source.load, "acme"))
        await settled()
        source.error = RuntimeError("down")
        source.release()
        given = {"who waits": await _gives(slow), "who comes": await _gives(late)}
        return ", ".join(who for who, value in given.items() if value == "old")


async def _gives(load: asyncio.Task[Any] | None) -> object:
    with suppress(RuntimeError, L2Unavailable):
        return None if load is None else await load
    return None
