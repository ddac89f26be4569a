"""Without L2: what still works, what raises, how long anything takes, and the way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from cachebus import Cache, InvalidationFailed, L2Unavailable, Policy, get_with_cache_aside, lifespan
from cachebus.base.clock import monotonic
from cachebus.base.lifetimes import TAGS_MAX
from cachebus.testing import FakeClock, Faults, Fleet
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, Source, nodes, parts, past, quick, until
from tests.support.servers import any_binary

LIMIT_S = 0.5 * 1.25 + 0.4
"""`l2_timeout_s` of the tests, the watchdog's grain, and slack for a busy machine."""


@pytest.fixture
def stopped() -> Iterator[EmbeddedServer]:
    """A server that is not running yet."""
    with EmbeddedServer(any_binary()) as server:
        server.kill()
        yield server


async def test_a_degraded_start_serves_from_the_source_until_the_server_appears(stopped: EmbeddedServer) -> None:
    source = Source(x=1)
    async with nodes(stopped.url, 2, start_degraded=True) as (a, b):
        assert not a.ready()
        assert not a.stats().l2_connected
        for _ in range(3):
            assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == 1
        assert source.calls == 1
        with pytest.raises(L2Unavailable):
            await a.get("config", "y", tenant_id="acme")
        with pytest.raises(InvalidationFailed):
            await a.invalidate("config", "x", tenant_id="acme")
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == 1
        assert source.calls == 2  # what may have been invalidated is not believed
        await asyncio.to_thread(stopped.start)
        await until(lambda: a.ready() and b.ready())
        await a.set("config", "x", 2, tenant_id="acme")
        assert await b.get("config", "x", tenant_id="acme") == 2
        await b.invalidate("config", "x", tenant_id="acme")

        async def gone() -> bool:
            return await a.get("config", "x", tenant_id="acme") is None

        await until(gone)
        await until(lambda: a.stats().l2_connected and a.stats().bus_connected)


async def test_a_degraded_start_takes_no_longer_than_connect_timeout(own_server: EmbeddedServer) -> None:
    own_server.pause()
    started_s = monotonic()
    settings = quick(own_server.url, start_degraded=True, connect_timeout_s=0.3)
    async with Cache(settings) as cache:
        assert 0.25 < monotonic() - started_s < 1.5
        assert await cache.get_or_load("config", "x", lambda: 1, tenant_id="acme") == 1
        own_server.resume()
        await until(cache.ready)
        await cache.set("config", "y", 1, tenant_id="acme")


async def test_while_the_server_is_away_each_verb_does_what_was_promised(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1) as (a,):
        await a.set("config", "held", 1, tenant_id="acme")
        await a.set("config", "dropped", 1, tenant_id="acme")
        own_server.kill()
        assert await a.get("config", "held", tenant_id="acme") == 1  # still within its lease
        raising: list[tuple[type[Exception], Callable[[], Awaitable[Any]]]] = [
            (L2Unavailable, lambda: a.get("config", "y", tenant_id="acme")),
            (L2Unavailable, lambda: a.get("config", "y", "acme", "a", search_hierarchy=True)),
            (L2Unavailable, lambda: a.get_many("config", ["y"], tenant_id="acme")),
            (L2Unavailable, lambda: a.set("config", "y", 1, tenant_id="acme")),
            (L2Unavailable, lambda: a.add("config", "y", 1, tenant_id="acme")),
            (L2Unavailable, lambda: a.increment("hits", tenant_id="acme")),
            (InvalidationFailed, lambda: a.invalidate("config", "dropped", tenant_id="acme")),
            (InvalidationFailed, lambda: a.delete("config", "y", tenant_id="acme")),
            (InvalidationFailed, lambda: a.invalidate_scope("acme", "other")),
            (InvalidationFailed, lambda: a.invalidate_tags(["t"], tenant_id="acme")),
        ]
        for error, call in raising:
            started_s = monotonic()
            with pytest.raises(error):
                await call()
            assert monotonic() - started_s < LIMIT_S
        with pytest.raises(L2Unavailable):
            await a.get("config", "dropped", tenant_id="acme")
        counts = a.stats()
        assert counts.invalidations_failed == 4
        assert counts.l2_errors >= len(raising)
        await past(monotonic() + D_S)
        with pytest.raises(L2Unavailable):
            await a.get("config", "held", tenant_id="acme")
        assert not a.ready()


async def test_an_outage_may_be_a_miss(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, on_outage="miss") as (a,):
        await a.set("config", "x", 1, tenant_id="acme")
        own_server.kill()
        await past(monotonic() + D_S)
        assert await a.get("config", "x", tenant_id="acme", default=7) == 7
        assert await a.get_many("config", ["x", "y"], tenant_id="acme") == {}
        assert await a.get("config", "x", "acme", "a", search_hierarchy=True) is None
        with pytest.raises(L2Unavailable):
            await a.set("config", "x", 1, tenant_id="acme")
        with pytest.raises(InvalidationFailed):
            await a.invalidate("config", "x", tenant_id="acme")


async def test_loads_without_l2_are_shared_on_a_node_and_kept_for_d(own_server: EmbeddedServer) -> None:
    source = Source(x=1)
    async with nodes(own_server.url, 1) as (a,):
        own_server.kill()
        source.hold()
        callers = [asyncio.create_task(a.get_or_load("config", "x", source.load, tenant_id="acme")) for _ in range(50)]
        await source.asked.wait()
        source.release()
        assert await asyncio.gather(*callers) == [1] * 50
        loaded_at_s = monotonic()
        assert source.calls == 1
        source.values["x"] = 2
        await past(loaded_at_s + D_S)
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == 2
        assert source.calls == 2


async def test_not_found_is_kept_for_d_too_without_l2() -> None:
    policies = {"negative": Policy(negative_ttl_s=60)}
    clock = FakeClock()
    async with Fleet(1, clock=clock, staleness_bound_s=2.0, policies=policies) as fleet:
        a, source = fleet.caches[0], Source()
        fleet.away = True
        clock.advance(2)
        for _ in range(3):
            assert await a.get_or_load("negative", "x", source.load, tenant_id="acme") is None
        assert source.calls == 1
        clock.advance(2.01)
        assert await a.get_or_load("negative", "x", source.load, tenant_id="acme") is None
        assert source.calls == 2


async def test_the_moment_of_an_outage_leaves_no_call_unawaited() -> None:
    async with Fleet(1) as fleet:
        a = fleet.caches[0]
        fleet.away = True
        with pytest.raises(L2Unavailable):
            await a.get_many("config", ["x", "y", "z"], tenant_id="acme")
        with pytest.raises(L2Unavailable):
            await a.get("config", "x", "acme", "a", "v", "c", search_hierarchy=True)


async def test_values_loaded_alone_do_not_outlive_the_return_of_the_server(own_server: EmbeddedServer) -> None:
    """What b invalidates once the server is back must reach what a loaded while it was away."""
    async with nodes(own_server.url, 2, staleness_bound_s=60) as (a, b):
        source = Source(x="old")
        own_server.kill()
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == "old"
        await asyncio.to_thread(own_server.start)
        await until(lambda: a.ready() and b.ready() and a.stats().l2_connected and b.stats().l2_connected)
        await until(lambda: a.stats().shards[0].epoch == b.stats().shards[0].epoch)
        source.values["x"] = "new"
        receipt = await b.invalidate("config", "x", tenant_id="acme")
        await until(lambda: a.stats().shards[0].applied >= receipt.seq)
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == "new"


async def test_cache_aside_without_l2_gives_the_databases_answer_and_says_so(own_server: EmbeddedServer) -> None:
    async with lifespan(quick(own_server.url)):
        own_server.kill()
        value, metrics = await get_with_cache_aside("config", "x", "acme", lambda: 1)
        assert (value, metrics["source"], metrics["cache_hit"]) == (1, "database", False)
        value, metrics = await get_with_cache_aside("config", "x", "acme", lambda: 2)
        assert (value, metrics["source"], metrics["level"]) == (1, "cache", "l1")


async def test_a_paused_server_holds_no_call_for_longer_than_its_time_limit(own_server: EmbeddedServer) -> None:
    calls: dict[str, Callable[[Cache, int], Awaitable[Any]]] = {
        "get": lambda cache, i: cache.get("config", i, tenant_id="acme"),
        "set": lambda cache, i: cache.set("config", i, i, tenant_id="acme"),
        "invalidate": lambda cache, i: cache.invalidate("config", i, tenant_id="acme"),
        "get_or_load": lambda cache, i: cache.get_or_load("config", i, lambda: i, tenant_id="acme"),
    }

    async def longest(cache: Cache, call: Callable[[Cache, int], Awaitable[Any]], until_s: float) -> float:
        longest_s = 0.0
        i = 0
        while monotonic() < until_s:
            i += 1
            started_s = monotonic()
            with suppress(L2Unavailable, InvalidationFailed):
                assert await call(cache, i) in (i, None)
            longest_s = max(longest_s, monotonic() - started_s)
            await asyncio.sleep(0.01)
        return longest_s

    async with nodes(own_server.url, len(calls)) as fleet:
        own_server.pause()
        ends_s = monotonic() + 2.5 * LIMIT_S
        took_s = await asyncio.gather(
            *(longest(cache, call, ends_s) for cache, call in zip(fleet, calls.values(), strict=True))
        )
        assert max(took_s) < LIMIT_S, dict(zip(calls, took_s, strict=True))
        own_server.resume()
        await until(lambda: all(cache.ready() for cache in fleet))
        await fleet[0].set("config", "x", 1, tenant_id="acme")


async def test_without_l2_a_node_that_had_missed_events_loads_once_a_bound_too() -> None:
    """What it held was newer than the last event that it had heard, and must not keep out what it loads now."""
    clock, source = FakeClock(), Source(x="v")
    async with Fleet(2, clock=clock) as fleet:
        a, b = fleet.caches
        fleet.faults = Faults(drop=1.0)
        await b.set("config", "other", 1, tenant_id="acme")
        await a.get_or_load("config", "x", source.load, tenant_id="acme")
        fleet.away = True
        clock.advance(a.settings.staleness_bound_s + 0.1)
        for _ in range(3):
            assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == "v"
        assert source.calls == 2
        clock.advance(a.settings.staleness_bound_s + 0.1)
        await a.get_or_load("config", "x", source.load, tenant_id="acme")
        assert source.calls == 3


@asynccontextmanager
async def behind_a_gap(heard: str) -> AsyncIterator[tuple[Fleet, Callable[[], Awaitable[None]]]]:
    """Two nodes of which the first has heard of a scope's or tag's invalidation, and not of what came before it; and
    what invalidates that once more."""
    async with Fleet(2, clock=FakeClock()) as fleet:
        a, b = fleet.caches
        fleet.faults = Faults(drop=1.0)
        await b.set("config", "other", 1, tenant_id="acme")
        fleet.faults = None

        async def invalidate() -> None:
            if heard == "scope":
                await b.invalidate_scope("acme", "config")
            else:
                await b.invalidate_tags(["t"], tenant_id="acme")
            await fleet.settle()

        await invalidate()
        assert a.stats().shards[0].gap
        yield fleet, invalidate


@pytest.mark.parametrize("heard", ["scope", "tag"])
async def test_without_l2_a_mark_heard_ahead_of_a_gap_does_not_keep_out_what_is_loaded_after_it(heard: str) -> None:
    source = Source(x="v")
    async with behind_a_gap(heard) as (fleet, _):
        a = fleet.caches[0]
        fleet.away = True
        for _ in range(3):
            assert await a.get_or_load("config", "x", source.load, tenant_id="acme", tags=["t"]) == "v"
        assert source.calls == 1


@pytest.mark.parametrize("kind", ["tagged", "fail-safe"])
async def test_a_read_with_a_token_takes_no_fallback_that_is_older(kind: str) -> None:
    """Neither L2 nor the source answers: better no value than one that the token says was replaced."""
    source = Source(x="old")
    policies = {"config": Policy(fail_safe_s=60 if kind == "fail-safe" else None, retries=0)}
    async with Fleet(2, policies=policies) as fleet:
        a, b = fleet.caches
        for cache in (a, b):
            assert await cache.get_or_load("config", "x", source.load, tenant_id="acme", tags=["t"]) == "old"
        fleet.faults = Faults(drop=1.0)  # the other node will not hear of it
        source.values["x"] = "new"
        receipt = await a.invalidate("config", "x", tenant_id="acme")
        fleet.away, source.error = True, RuntimeError("down")
        assert await b.get_or_load("config", "x", source.load, tenant_id="acme") == "old"  # within D: as it may
        with pytest.raises(RuntimeError, match="down"):
            await b.get_or_load("config", "x", source.load, tenant_id="acme", after=receipt)


@pytest.mark.parametrize("first_is_done", [True, False])
async def test_who_waited_for_a_silent_l2_takes_what_this_node_has_loaded_meanwhile(first_is_done: bool) -> None:
    """The first flight began under a lease that has run out since, so the second did not join it; both waited for L2,
    and one load is enough."""
    source, clock = Source(x="v"), FakeClock()
    async with Fleet(1, clock=clock) as fleet:
        a = fleet.caches[0]
        await a.probe()
        silent = [asyncio.Event(), asyncio.Event()]
        waiting = iter(silent)

        async def never(*_: Any, **__: Any) -> Any:
            await next(waiting).wait()
            raise L2Unavailable("silent")

        async def ask() -> Any:
            return await a.get_or_load("config", "x", source.load, tenant_id="acme")

        store = parts(a).store
        store.get = store.read = never  # type: ignore[method-assign]
        clock.advance(a.settings.staleness_bound_s / 2)
        first = asyncio.create_task(ask())
        await fleet.settle()
        clock.advance(a.settings.staleness_bound_s)
        second = asyncio.create_task(ask())
        await fleet.settle()
        source.hold()
        silent[0].set()
        await source.asked.wait()
        if first_is_done:
            source.release()
            assert await first == "v"
        silent[1].set()
        await fleet.settle()
        source.release()
        assert [await first, await second] == ["v", "v"]
        assert source.calls == 1


async def test_a_slow_load_does_not_take_the_place_of_one_that_began_after_it() -> None:
    """Without L2 what was loaded lives until D after its load began: the slow one's time is over when it ends."""
    slow, quick_one, clock = Source(x="old"), Source(x="new"), FakeClock()
    async with Fleet(1, clock=clock) as fleet:
        a = fleet.caches[0]
        fleet.away = True
        slow.hold()
        first = asyncio.create_task(a.get_or_load("config", "x", slow.load, tenant_id="acme"))
        await slow.asked.wait()
        clock.advance(a.settings.staleness_bound_s * 1.1)  # nobody may join it any more
        assert await a.get_or_load("config", "x", quick_one.load, tenant_id="acme") == "new"
        slow.release()
        assert await first == "old"
        assert await a.get_or_load("config", "x", quick_one.load, tenant_id="acme") == "new"
        assert quick_one.calls == 1


async def test_a_later_load_that_was_replaced_since_keeps_no_earlier_one_out() -> None:
    """Each has its own, as one record can't carry the tags of both."""
    earlier, later, clock = Source(x="earlier"), Source(x="later"), FakeClock()
    async with Fleet(2, clock=clock) as fleet:
        a, b = fleet.caches
        fleet.away = True
        earlier.hold()
        tags = [f"t{number}" for number in range(TAGS_MAX)]
        first = asyncio.create_task(a.get_or_load("config", "x", earlier.load, tenant_id="acme", tags=tags))
        await earlier.asked.wait()
        clock.advance(a.settings.staleness_bound_s / 2)
        assert await a.get_or_load("config", "x", later.load, tenant_id="acme", tags=["another"]) == "later"
        fleet.away = False
        await b.invalidate_tags(["another"], tenant_id="acme")
        await fleet.settle()
        fleet.away = True
        earlier.release()
        assert await first == "earlier"
        assert await a.get_or_load("config", "x", later.load, tenant_id="acme") == "earlier"
        assert later.calls == 1


@pytest.mark.parametrize("away", [True, False], ids=["without L2", "with L2"])
@pytest.mark.parametrize("heard", ["scope", "tag"])
async def test_a_mark_heard_ahead_of_a_gap_keeps_nobody_from_a_load_that_began_after_it(heard: str, away: bool) -> None:
    source = Source(x="v")
    async with behind_a_gap(heard) as (fleet, invalidate):
        a = fleet.caches[0]

        async def ask() -> Any:
            return await a.get_or_load("config", "x", source.load, tenant_id="acme", tags=["t"])

        fleet.away = away
        source.hold()
        asking = [asyncio.create_task(ask())]
        await source.asked.wait()
        asking.append(asyncio.create_task(ask()))
        await fleet.settle()
        assert source.calls == 1
        fleet.away = False
        await invalidate()  # this one came after the load began
        fleet.away = away
        asking.append(asyncio.create_task(ask()))
        await until(lambda: a.stats().flights == 2)
        source.release()
        assert await asyncio.gather(*asking) == ["v"] * 3


async def test_a_lease_that_lapsed_before_another_epoch_is_counted_once(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1) as (cache,):
        epoch = cache.stats().shards[0].epoch
        await until(cache.ready)
        before = cache.stats().lease_lapses
        own_server.kill()
        await until(lambda: cache.stats().shards[0].lease_left_s == 0)
        own_server.restart()
        await until(lambda: cache.stats().shards[0].epoch != epoch and cache.ready())
        assert cache.stats().lease_lapses == before + 1
