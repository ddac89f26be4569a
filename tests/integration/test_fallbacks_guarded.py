"""Fallbacks for a failing source, and write guards: what may have been read before a commit that a guard covered is
no fallback once that guard's time is over, though the guard was lost, or was never asked about.

In all of these the writer commits in time and is killed, so nobody takes its guard away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cachebus import Cache, Policy
from cachebus.base.clock import monotonic
from cachebus.reading.freshness import fallback_in_l1
from cachebus.reading.request import Request
from cachebus.resp import parse_address
from cachebus.testing import FakeClock, Fleet
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import Source, key_of, nodes, parts, past, rules_of, until

D_S = 0.3
DB_S = 0.4
GUARD_S = 0.5
MAX_S = 2.0
LIFE_S = 0.1
POLICIES = {"config": Policy(ttl_s=LIFE_S, fail_safe_s=3600, retries=0)}
TIMES: dict[str, Any] = {"policies": POLICIES, "staleness_bound_s": D_S, "db_timeout_s": DB_S, "guard_max_s": MAX_S}

SHORT: dict[str, Any] = {**TIMES, "guard_max_s": GUARD_S}


async def guarded(writer: Cache) -> float:
    """Put up the guard of a writer that is then killed; when everybody must see its commit, by our clock."""
    began_s = monotonic()
    await writer.write_guard([("config", "x")], "acme", timeout_s=GUARD_S).__aenter__()
    return began_s + GUARD_S + D_S


async def loaded(cache: Cache, source: Source) -> Any:
    return await cache.get_or_load("config", "x", source.load, "acme")


async def gives_nothing_old(cache: Cache, source: Source) -> None:
    """The source fails, and nothing stands in for it: not at the first read, nor while the source is left alone."""
    for _ in range(3):
        with pytest.raises(RuntimeError, match="down"):
            await loaded(cache, source)


@pytest.mark.parametrize("reader", ["who has it in L1", "who finds it in L2"])
async def test_what_was_loaded_when_a_takeover_had_lost_a_guard_is_no_fallback(
    redis_server: EmbeddedServer, reader: str
) -> None:
    source = Source(x="old")
    async with nodes(redis_server.url, 3, **TIMES) as (writer, loader, other):
        due_s = await guarded(writer)
        assert redis_server.command("DEL", "{cachebus:0}:meta") == ":1"  # evicted: whoever comes next takes over
        for cache in (loader, other):
            await cache.probe()
        assert await loaded(loader, source) == "old"
        assert loader.stats().guarded_loads == 0, "the guard was lost"
        source.values["x"], source.error = "new", RuntimeError("down")
        await past(due_s)
        await gives_nothing_old(loader if reader == "who has it in L1" else other, source)


async def test_once_no_lost_guard_can_stand_any_more_what_is_loaded_is_a_fallback(redis_server: EmbeddedServer) -> None:
    source = Source(x="new")
    async with nodes(redis_server.url, 2, **SHORT) as caches:
        for cache in caches:
            source.error = None

            async def is_given(cache: Cache = cache) -> bool:
                source.error = None
                loaded_s = monotonic()
                await loaded(cache, source)
                await past(loaded_s + LIFE_S * 2)
                source.error = RuntimeError("down")
                try:
                    return bool(await loaded(cache, source) == "new")
                except RuntimeError:
                    return False

            await until(is_given)


async def test_what_was_loaded_without_l2_under_a_guard_is_no_fallback(redis_url: str) -> None:
    """The guard stands, but this node could not ask about it."""
    source = Source(x="old")
    async with (
        Proxy(dialer(parse_address(redis_url))) as proxy,
        nodes(redis_url, 1, **SHORT) as (writer,),
        nodes(f"redis://{HOST}:{proxy.port}/0", 1, **SHORT) as (cut_off,),
    ):
        # The namespace is as new as the server: what is loaded later could be a fallback, were it not loaded alone.
        await past(monotonic() + GUARD_S + D_S)
        due_s = await guarded(writer)
        proxy.cut()
        assert await loaded(cut_off, source) == "old"
        source.values["x"], source.error = "new", RuntimeError("down")
        proxy.restore()
        await until(cut_off.ready)
        await past(due_s)
        await gives_nothing_old(cut_off, source)


async def test_a_slow_load_that_began_when_a_lost_guard_might_have_stood_is_kept_nowhere(
    redis_server: EmbeddedServer,
) -> None:
    source, policies = Source(x="old"), {"config": Policy(ttl_s=3600, fail_safe_s=3600, retries=0)}
    async with nodes(redis_server.url, 2, **{**SHORT, "policies": policies}) as (writer, loader):
        await guarded(writer)
        assert redis_server.command("DEL", "{cachebus:0}:meta") == ":1"
        await loader.probe()
        taken_over_s = monotonic()
        source.hold()
        slow = asyncio.create_task(loaded(loader, source))
        await source.asked.wait()
        source.values["x"] = "new"
        await past(taken_over_s + GUARD_S + D_S)
        late = asyncio.create_task(loaded(loader, source))  # whoever comes now does not join it
        await asyncio.sleep(0)
        source.release()
        assert (await slow, await late) == ("old", "new")
        for cache in (loader, writer):
            assert await loaded(cache, source) == "new"


# -- with a clock that the test turns --------------------------------------------------------------------------------


@asynccontextmanager
async def pair(clock: FakeClock) -> AsyncIterator[tuple[Fleet, Cache, Cache]]:
    """Two nodes over memory. Their heartbeats stand still: they hear of another epoch when the test has them probe."""
    policies = {"config": Policy(ttl_s=1, fail_safe_s=3600, retries=0)}
    settings = {"staleness_bound_s": 2.0, "probe_interval_s": 1.0, "guard_max_s": 60.0, "db_timeout_s": 1.0}
    async with Fleet(2, clock=clock, policies=policies, **settings) as fleet:
        for cache in fleet.caches:
            parts(cache).listening.heartbeat.cancel()
        yield fleet, *fleet.caches


async def test_a_node_that_has_yet_to_hear_when_an_epoch_began_takes_no_fallback_of_it() -> None:
    clock, source = FakeClock(), Source(x="old")
    async with pair(clock) as (fleet, a, b):
        await a.write_guard([("config", "x")], "acme", timeout_s=2.5).__aenter__()
        fleet.world.shards[0].server += "'"
        await a.probe()
        assert await loaded(a, source) == "old"
        source.values["x"], source.error = "new", RuntimeError("down")
        clock.advance(5)
        await gives_nothing_old(b, source)


async def test_nobody_joins_a_load_without_l2_that_began_under_a_guard_whose_time_is_over() -> None:
    """The node lost its answer, not its lease: it probes on, and hears nothing of a guard."""
    clock, source = FakeClock(), Source(x="old")
    async with pair(clock) as (fleet, a, b):
        await a.write_guard([("config", "x")], "acme", timeout_s=2.5).__aenter__()
        source.hold()
        fleet.away = True
        slow = asyncio.create_task(loaded(b, source))
        await source.asked.wait()
        fleet.away = False
        source.values["x"] = "new"
        for _ in range(5):
            clock.advance(1)
            await fleet.probe()
        late = asyncio.create_task(loaded(b, source))
        await fleet.settle()
        source.release()
        assert (await slow, await late) == ("old", "new")


async def test_what_memory_could_give_instead_is_given_no_longer_than_memory_could() -> None:
    """Not for D from when it was taken: the lease it was read under may end before."""
    clock = FakeClock()
    policies = {"config": Policy(ttl_s=1, fail_safe_s=1000)}
    async with Fleet(1, clock=clock, staleness_bound_s=10.0, policies=policies) as fleet:
        (cache,) = fleet.caches
        node, key = parts(cache).node, key_of(cache, "config", "x", "acme")
        await cache.get_or_load("config", "x", lambda: "old", "acme")
        clock.advance(5)  # expired, and still under the lease
        fleet.away = True  # nothing renews it from here on
        until_s = node.shards[0].valid_until_s
        taken = fallback_in_l1(node, Request(key, None, rules_of(cache, "config")))
        assert taken is not None and taken.usable(clock())
        clock.advance(until_s - clock() + 1)
        assert not taken.usable(clock()), "though it was taken less than D ago"
