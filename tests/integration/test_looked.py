"""A look at what is cached, loading anew, and passing the cache by."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from cachebus import BlockingCache, Cache, Fresh, L2Unavailable, Policy, get_with_cache_aside, lifespan
from cachebus.testing import Fleet
from tests.support.aging import aging
from tests.support.caches import Source, asked, deaf, nodes, quick, until
from tests.support.threads import given, threads


async def read(cache: Cache, source: Source, data_type: str = "config", **more: Any) -> Any:
    return await cache.get_or_load(data_type, "x", source.load, tenant_id="acme", **more)


# -- a look -------------------------------------------------------------------------------------------------------


async def test_a_look_tells_what_is_known_on_either_level() -> None:
    async with aging(2, config=Policy(ttl_s=100, soft_ttl_s=40)) as world:
        a, b = world.nodes
        await a.get_or_load("config", "x", lambda: Fresh({"n": 1}, version="v1", tags=["t"]), "acme")
        await world.pass_s(10)
        far, near = await b.look("config", "x", "acme"), await a.look("config", "x", "acme")
        assert (far.level, near.level) == ("l2", "l1")
        for seen in (far, near):
            assert (seen.value, seen.version, seen.tags, seen.found, seen.is_stale) == (
                {"n": 1},
                "v1",
                ("t",),
                True,
                False,
            )
            assert seen.age_s == pytest.approx(10, abs=1.1)
            assert seen.ttl_left_s == pytest.approx(90, abs=4)
            assert seen.soft_left_s == pytest.approx(30, abs=2)
        assert (await b.look("config", "x", "acme")).level == "l1", "as a get, it brings it into memory"
        await world.pass_s(35)
        assert (await a.look("config", "x", "acme")).is_stale
        types = a.stats().types["config"]
        assert (types.l1_hits, types.loads, types.refreshes) == (2, 1, 0), "it counts as a read, and loads nothing"


async def test_what_was_set_and_what_lives_for_ever() -> None:
    async with aging(2) as world:
        a, b = world.nodes
        await a.set("config", "x", 1, "acme", ttl=math.inf, tags=["t"])
        await world.pass_s(20)
        for cache in (a, b, b):
            seen = await cache.look("config", "x", "acme")
            assert (seen.ttl_left_s, seen.soft_left_s, seen.tags) == (math.inf, None, ("t",))
            assert seen.age_s == pytest.approx(20, abs=1.1)
        await a.set("config", "y", 1, "acme")
        await world.pass_s(20)
        assert (await a.look("config", "y", "acme")).age_s == pytest.approx(20, abs=1.1)


async def test_not_found_absent_and_expired_are_apart() -> None:
    async with aging(2, config=Policy(ttl_s=10, negative_ttl_s=10, fail_safe_s=100)) as world:
        a, b = world.nodes
        await read(a, Source())
        for cache in (a, b):
            seen = await cache.look("config", "x", "acme")
            assert (seen.not_found, seen.found, seen.is_fallback, seen.absent, seen.value) == (
                True,
                False,
                False,
                False,
                None,
            )
        await a.delete("config", "x", "acme")
        assert (await a.look("config", "x", "acme")).absent
        await read(a, Source(x=1))
        await world.pass_s(11)
        for cache in (a, b):
            seen = await cache.look("config", "x", "acme")
            assert (seen.is_fallback, seen.is_stale, seen.found, seen.absent, seen.value) == (
                True,
                True,
                False,
                False,
                1,
            )
            assert seen.ttl_left_s is not None
            assert seen.ttl_left_s <= 0
            assert await cache.get("config", "x", "acme") is None
        await b.invalidate("config", "x", "acme")
        await world.fleet.settle()
        for cache in (a, b):
            assert (await cache.look("config", "x", "acme")).absent


async def test_a_look_is_as_coherent_as_a_read(redis_url: str) -> None:
    async with nodes(redis_url, 2) as (a, b):
        await a.set("config", "x", "old", "acme")
        assert (await b.look("config", "x", "acme")).value == "old"
        with deaf(b):
            receipt = await a.set("config", "x", "new", "acme")
            assert (await b.look("config", "x", "acme", after=receipt)).value == "new"
            receipt = await a.invalidate("config", "x", "acme")
            assert (await b.look("config", "x", "acme", after=receipt)).absent


async def test_in_an_outage_a_look_raises_as_a_read_does() -> None:
    for outage in ("raise", "miss"):
        async with Fleet(1, on_outage=outage) as fleet:
            (a,) = fleet.caches
            fleet.away = True
            if outage == "raise":
                with pytest.raises(L2Unavailable):
                    await a.look("config", "x", "acme")
            else:
                assert (await a.look("config", "x", "acme")).absent


# -- loading anew -------------------------------------------------------------------------------------------------


async def test_a_refresh_replaces_what_is_there(redis_url: str) -> None:
    async with nodes(redis_url, 2) as (a, b):
        source = Source(x=1)
        await read(a, source)
        source.values["x"] = 2
        assert await read(a, source) == 1
        assert await read(a, source, refresh=True) == 2
        assert await read(a, source) == 2
        assert await b.get("config", "x", "acme") == 2
        assert source.calls == 2


async def test_a_refresh_joins_nothing_older() -> None:
    async with Fleet(2) as fleet:
        a, b = fleet.caches
        for other in (a, b):
            older, newer = Source(x="old"), Source(x="new")
            older.hold()
            first = asyncio.create_task(read(other, older))
            await older.asked.wait()
            anew = [asyncio.create_task(read(a, newer, refresh=True)) for _ in range(3)]
            await fleet.settle()
            older.release()
            assert await first == "old"
            assert await asyncio.gather(*anew) == ["new"] * 3
            assert newer.calls == 1, "it had yet to ask its source"
            assert await a.get("config", "x", "acme") == "new"
            newer.hold()
            one = asyncio.create_task(read(a, newer, refresh=True))
            await newer.asked.wait()
            newer.values["x"] = "newest"
            two = asyncio.create_task(read(a, newer, refresh=True))
            await fleet.settle()
            newer.release()
            assert (await one, await two) == ("new", "newest")
            await a.clear()


async def test_a_refresh_that_fails_leaves_what_was_there() -> None:
    async with aging(1, config=Policy(ttl_s=10, fail_safe_s=100, retries=0)) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await read(a, source)
        source.error = OSError("away")
        with pytest.raises(OSError, match="away"):
            await read(a, source, refresh=True)
        assert await read(a, source) == 1
        await world.pass_s(11)
        with pytest.raises(OSError, match="away"):
            await read(a, source, refresh=True)
        assert await read(a, source) == 1, "as a fallback"
        world.fleet.away = True
        source.error, source.values["x"] = None, 2
        assert await read(a, source, refresh=True) == 2


# -- passing the cache by -----------------------------------------------------------------------------------------


async def test_in_a_bypass_the_source_is_asked_and_nothing_is_kept(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (a,):
        source = Source(x="old")
        await read(a, source)
        source.values["x"] = "new"
        with asked(a) as counts:
            with a.bypassed():
                assert await read(a, source) == "new"
                assert await asyncio.create_task(read(a, source)) == "new"
                assert await a.get("config", "x", "acme", default=7) == 7
                assert await a.get("config", "x", "acme", agent_id=1, search_hierarchy=True) is None
                assert await a.get_many("config", ["x"], "acme") == {}
                assert (await a.look("config", "x", "acme")).absent
                many = await a.get_or_load_many("config", ["x"], lambda ids: dict.fromkeys(ids, "all"), "acme")
                assert many == {"x": "all"}
            assert sum(counts[name] for name in ("get", "read", "fill_lease", "fill", "write")) == 0
        assert source.calls == 3
        assert await read(a, source) == "old"
        assert not a.stats().flights


async def test_a_bypass_is_of_its_own_task_and_cache() -> None:
    async with Fleet(2) as fleet:
        a, b = fleet.caches
        await a.set("config", "x", 1, "acme")
        assert await b.get("config", "x", "acme") == 1
        go_on, inside = asyncio.Event(), asyncio.Event()

        async def passing() -> None:
            with a.bypassed():
                inside.set()
                await go_on.wait()

        task = asyncio.create_task(passing())
        await inside.wait()
        hits = a.stats().types["config"].l1_hits
        assert await a.get("config", "x", "acme") == 1, "another task"
        assert a.stats().types["config"].l1_hits == hits + 1
        with a.bypassed():
            assert await b.get("config", "x", "acme") == 1, "another cache"
            with a.bypassed():
                assert await a.get("config", "x", "acme") is None
            assert await a.get("config", "x", "acme") is None
            late = asyncio.Event()

            async def later() -> Any:
                await late.wait()
                return await a.get("config", "x", "acme")

            outlives = asyncio.create_task(later())
        late.set()
        assert await outlives == 1, "what outlives the block reads as ever, though another one is entered"
        go_on.set()
        await task
        assert type(a._entries) is dict, "a hit asks nothing of it any more"


def test_a_thread_passes_by_what_both_of_its_caches_hold(redis_url: str) -> None:
    """A hit is answered by the thread, or by the cache on the event loop."""
    with BlockingCache.open(quick(redis_url)) as cache, threads(1) as others:
        cache.set("config", "x", "old", "acme")
        asked_for: list[Any] = []

        def load(resource_id: str) -> str:
            asked_for.append((resource_id, cache.get("config", "x", "acme")))
            return "new"

        @cache.cached("config", resource_id="x", tenant_id="acme")
        def decorated() -> str:
            return "decorated"

        for _ in range(2):
            with cache.bypassed():
                assert cache.get("config", "x", "acme", default=7) == 7
                assert cache.get("config", "x", "acme", agent_id=1, search_hierarchy=True) is None
                assert cache.get_or_load("config", "x", load, "acme") == "new"
                assert cache.get_or_load("config", "x", tenant_id="acme", batch=lambda ids: {"x": "all"}) == "all"
                assert cache.get_many("config", ["x"], "acme") == {}
                assert cache.get_targets([("config", "x")], "acme") == {}
                assert cache.get_or_load_many("config", ["x"], lambda ids: {"x": "all"}, "acme") == {"x": "all"}
                assert cache.look("config", "x", "acme").absent
                assert decorated() == "decorated"
                assert given(others.start(cache.get, "config", "x", "acme")) == "old", "another thread"
            assert cache.get("config", "x", "acme") == "old", "nothing was kept"
        assert asked_for == [("x", None)] * 2, "what a loader reads passes by, too"
        assert type(cache._entries) is dict, "a hit asks nothing of it any more"
        assert cache._there is not None
        assert type(cache._there._entries) is dict


async def test_who_passes_by_shares_no_batch_with_who_does_not() -> None:
    async with Fleet(1) as fleet:
        (a,) = fleet.caches
        await a.set("rate", "eur", "cached", "acme")
        asked_for: list[list[int]] = []

        async def load(ids: list[int]) -> dict[int, Any]:
            asked_for.append(ids)
            rate = await a.get_or_load("rate", "eur", lambda: "asked", "acme")
            return dict.fromkeys(ids, rate)

        async def one(i: int) -> Any:
            return await a.get_or_load("price", i, tenant_id="acme", batch=load)

        async def passing(i: int) -> Any:
            with a.bypassed():
                return await one(i)

        async def passing_several() -> Any:
            with a.bypassed():
                return await asyncio.gather(one(4), one(5))

        found = await asyncio.gather(one(1), passing(2), one(3), passing_several())
        assert found == ["cached", "asked", "cached", ["asked", "asked"]]
        assert sorted(asked_for) == [[1, 3], [2], [4, 5]]


async def test_cache_aside_passes_by_too() -> None:
    async with lifespan(quick("memory://past")) as cache:
        assert (await get_with_cache_aside("config", "x", "acme", lambda: 1))[0] == 1
        with cache.bypassed():
            value, metrics = await get_with_cache_aside("config", "x", "acme", lambda: 2)
            assert (value, metrics["source"], metrics["cache_hit"]) == (2, "database", False)
        assert (await get_with_cache_aside("config", "x", "acme", lambda: 3))[0] == 1


async def test_a_cache_that_is_closed_in_a_bypass_stays_closed() -> None:
    cache = Cache("memory://closed")
    await cache.__aenter__()
    with cache.bypassed():
        await cache.aclose()
    assert cache._entries == {}
    await until(lambda: True)
