"""A small world of fallbacks and write guards: every schedule of it, played over the real code and memory.

A writer's guard goes up at 0, stands for as long as any guard may, and is never taken away: the writer is killed after
its commit. Another node loads what is written, and reads the source before the commit; its answer comes whenever it
likes; from then on the source fails. Once a takeover may lose the guard, and once both nodes may be cut off from L2 for
a while. Time goes in ticks. When no guard can stand any more, nobody may be given what was there before the commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from cachebus import Cache, L2Unavailable, Policy, Settings
from cachebus.assembly.world import World
from cachebus.core.ports import Caller
from cachebus.testing import FakeClock
from tests.model.pair import pair, settled
from tests.support.caches import Source

D = 1
"""The staleness bound, in ticks; a tick is a second."""
COMMITTED_BY = 2
"""A transaction lives no longer."""
STANDS = 3
"""For how long the guard stands, the longest that there may be."""
LIFE = 1
"""How long a value lives before it is one that is only a fallback."""
READ, ANSWER, TAKE_OVER, CUT, RESTORE, TICK = "read", "answer", "take over", "cut off", "back again", "tick"
Schedule = tuple[str, ...]
POLICY = Policy(ttl_s=LIFE, fail_safe_s=3600, retries=0, fail_safe_throttle_s=60)
SETTINGS = Settings(
    url="memory://",
    staleness_bound_s=D,
    probe_interval_s=0.5,
    guard_max_s=STANDS,
    db_timeout_s=COMMITTED_BY,
    gap_grace_s=0.0,
    lease_ms=60_000,
    policies={"config": POLICY},
)


def schedules(done: Schedule = ()) -> Iterator[Schedule]:
    """Every order of what may happen, until nothing old may be left."""
    now, lost_at = done.count(TICK), _at(done, TAKE_OVER)
    if now == due(lost_at):
        if READ in done:
            yield done
        return
    may = {
        READ: now <= COMMITTED_BY,
        ANSWER: READ in done,
        TAKE_OVER: now < STANDS,
        CUT: done[-1:] != (TAKE_OVER,),  # to who is cut off it is the same whether that was just before
        RESTORE: CUT in done,
    }
    for step, possible in may.items():
        if possible and step not in done:
            yield from schedules((*done, step))
    yield from schedules((*done, TICK))


def _at(done: Schedule, step: str) -> int | None:
    return done[: done.index(step)].count(TICK) if step in done else None


def due(lost_at: int | None) -> int:
    """When all must see the commit. After a takeover nobody knows what stood: time begins anew."""
    return (lost_at or 0) + STANDS + D


class Stage:
    """The writer's node and the loader's. `deaf`: the loader's heartbeat hangs, and it hears of no other epoch."""

    def __init__(self, writer: Cache, loader: Cache, world: World, clock: FakeClock, *, deaf: bool) -> None:
        self.writer, self.loader = writer, loader
        self._shards, self._shard, self._clock = world.shards, world.shards[0], clock
        self._probing = [writer] if deaf else [writer, loader]
        self._source = Source(x="old")
        self._source.hold()
        self._load: asyncio.Task[Any] | None = None

    async def do(self, step: str) -> None:
        """One step."""
        if step == READ:
            self._load = self._begun(self.loader)
            await settled()
            self._source.values["x"] = "new"  # the commit
        elif step == ANSWER:
            self._source.release()
            assert self._load is not None
            await self._load
            self._source.error = RuntimeError("down")
            with suppress(L2Unavailable):
                await self.writer.get("config", "x", "acme")  # what L2 has is in the memory of both
        elif step == TAKE_OVER:
            self._shard.server += "'"
            self._shard.nodes(Caller("", 0, b""))  # somebody elsewhere comes at once
        elif step == TICK:
            self._clock.advance(1.0)
            for cache in self._probing:
                with suppress(L2Unavailable):
                    await cache.probe()
        else:
            self._shards.away = step == CUT
        await settled()

    async def old(self) -> str:
        """Who gives what was there before the commit, "" for nobody."""
        if not self._source.gate.is_set():  # the load goes on: who comes now does not share it
            late = self._begun(self.loader)
            await settled()
            await self.do(ANSWER)
            if await self._outcome(late) == "old":
                return "who joins the load"
        for away in (False, True):
            self._shards.away = away
            for cache in (self.writer, self.loader):
                for _ in range(2):  # a source that has just failed is left alone
                    if await self._outcome(self._begun(cache)) == "old":
                        return f"{'the writer' if cache is self.writer else 'the loader'}'s node, L2 {away=}"
        return ""

    def _begun(self, cache: Cache) -> asyncio.Task[Any]:
        return asyncio.create_task(cache.get_or_load("config", "x", self._source.load, "acme"))

    async def _outcome(self, load: asyncio.Task[Any]) -> object:
        await settled()
        if not load.done():  # it waits for another's lease: it shares no load
            load.cancel()
        with suppress(RuntimeError, asyncio.CancelledError):
            return await load
        return None


async def broken(schedule: Schedule, *, deaf: bool = False) -> str:
    """What a schedule breaks, "" for nothing."""
    async with pair(SETTINGS) as (writer, loader, world, clock):
        stage = Stage(writer, loader, world, clock, deaf=deaf)
        await stage.writer.write_guard([("config", "x")], "acme", timeout_s=STANDS).__aenter__()
        for step in schedule:
            await stage.do(step)
        return await stage.old()
