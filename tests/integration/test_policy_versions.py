"""Two releases of a service, whose values of one type have different shapes, over one Redis: each finds its own, or
loads, and an invalidation by either holds for both."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cachebus import Cache, Policy
from cachebus.errors import ConfigError
from cachebus.testing import FakeClock, Fleet
from tests.support.caches import Source, never_poll, nodes, parts, until, waiting_in

OLD, NEW = {"name": "ann"}, {"first": "ann", "last": ""}


@asynccontextmanager
async def two(url: str, **policy: Any) -> AsyncIterator[tuple[Cache, Cache]]:
    """A node of version 1, and one of version 2."""
    async with (
        nodes(url, 1, policies={"user": Policy(**policy)}) as (old,),
        nodes(url, 1, policies={"user": Policy(version=2, **policy)}) as (new,),
    ):
        yield old, new


async def read(cache: Cache, **more: Any) -> Any:
    return await cache.get("user", "7", tenant_id="acme", **more)


async def test_a_record_of_another_version_is_absent_and_replaced(redis_url: str) -> None:
    async with two(redis_url) as (old, new):
        await old.set("user", "7", OLD, tenant_id="acme")
        assert await read(new) is None
        assert await new.get_many("user", ["7"], tenant_id="acme") == {}
        assert await new.get_or_load("user", "7", lambda: NEW, tenant_id="acme") == NEW
        assert await read(new, use_memory=False) == NEW
        assert await read(old, use_memory=False) is None
        assert await read(old) is None or await read(old) == OLD, "of its own memory, if anything"
        stats = new.stats()
        assert stats.records_of_other_versions >= 2
        assert not stats.records_corrupt
        assert not stats.types["user"].serialization_errors


async def test_nothing_is_logged(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with two(redis_url) as (old, new):
        await old.set("user", "7", OLD, tenant_id="acme")
        caplog.clear()
        for _ in range(20):
            assert await read(new) is None
        assert not caplog.records


@pytest.mark.parametrize("by", [0, 1])
async def test_an_invalidation_by_either_holds_for_both(redis_url: str, by: int) -> None:
    async with two(redis_url) as both:
        for cache, value in zip(both, (OLD, NEW), strict=True):
            assert await cache.get_or_load("user", "7", lambda value=value: value, tenant_id="acme") == value
        # The last has filled L2, and each has its own in memory.
        assert [await read(cache) for cache in both] == [OLD, NEW]
        receipt = await both[by].invalidate("user", "7", tenant_id="acme", wait="nodes")
        for cache in both:
            assert await read(cache, after=receipt) is None
            assert await read(cache) is None


async def test_by_l2s_own_judgement_too(redis_url: str) -> None:
    """A node whose lease is not live asks the script, which knows no versions."""
    async with two(redis_url) as (old, new):
        receipt = await old.set("user", "7", OLD, tenant_id="acme")
        parts(new).store.checked[0] = False
        assert await read(new, after=receipt) is None
        assert await new.get("user", "7", tenant_id="acme", agent_id="a", search_hierarchy=True) is None


async def test_many_nodes_of_a_version_load_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of them has loaded in the other's place is there for all of them."""
    never_poll(monkeypatch)
    source = Source(**{"7": NEW})
    async with (
        nodes(redis_url, 1, policies={"user": Policy()}) as (old,),
        nodes(redis_url, 4, policies={"user": Policy(version=2)}, lease_ms=60_000) as fleet,
    ):
        await old.set("user", "7", OLD, tenant_id="acme")
        source.hold()
        reads = [asyncio.create_task(cache.get_or_load("user", "7", source.load, tenant_id="acme")) for cache in fleet]
        await source.asked.wait()
        await until(lambda: sum(waiting_in(cache) for cache in fleet) == 3)
        source.release()
        assert await asyncio.gather(*reads) == [NEW] * 4
        assert source.calls == 1


async def test_loads_of_two_releases_are_bounded_by_what_memory_lacks(redis_url: str) -> None:
    """They replace each other's records, and each serves its memory: no more loads than without L2."""
    sources = Source(**{"7": OLD}), Source(**{"7": NEW})
    async with two(redis_url) as both:
        for _ in range(50):
            for cache, source in zip(both, sources, strict=True):
                assert await cache.get_or_load("user", "7", source.load, tenant_id="acme") == source.values["7"]
        assert [source.calls for source in sources] == [1, 1]


async def test_no_fallback_is_of_another_version() -> None:
    """An expired value that L2 keeps for a source that fails, but of another shape."""
    clock = FakeClock()
    policies = {"user": Policy(ttl_s=10, fail_safe_s=1000, retries=0)}
    async with Fleet(1, clock=clock, policies=policies) as fleet:
        (old,) = fleet.caches
        await old.set("user", "7", OLD, tenant_id="acme")
        new = Cache(
            fleet.settings.model_copy(
                update={"policies": {"user": policies["user"].model_copy(update={"version": 2})}}
            ),
            world=fleet.world,
            clock=clock,
        )
        async with new:
            clock.advance(11)
            await fleet.probe()
            await new.probe()

            async def fails() -> None:
                raise KeyError("7")

            with pytest.raises(KeyError):
                await new.get_or_load("user", "7", fails, tenant_id="acme")
            assert await old.get_or_load("user", "7", fails, tenant_id="acme") == OLD, "its own would be one"


async def test_not_found_is_of_its_version(redis_url: str) -> None:
    async with two(redis_url, negative_ttl_s=60) as (old, new):
        assert await old.get_or_load("user", "7", lambda: None, tenant_id="acme") is None
        assert await new.get_or_load("user", "7", lambda: NEW, tenant_id="acme") == NEW


async def test_add_and_counters_know_no_versions(redis_url: str) -> None:
    """What is to be done once is done once, by whichever release."""
    async with two(redis_url) as (old, new):
        assert await old.add("user", "7", OLD, tenant_id="acme")
        assert not await new.add("user", "7", NEW, tenant_id="acme")
        await old.increment("seen", "acme")
        assert await new.increment("seen", "acme") == 2


async def test_a_refresh_ahead_of_expiry_takes_the_others_place(redis_url: str) -> None:
    values = iter([OLD, {"name": "bob"}])
    async with two(redis_url, ttl_s=100, soft_ttl_s=0.05) as (old, new):
        assert await old.get_or_load("user", "7", lambda: next(values), tenant_id="acme") == OLD
        assert await new.get_or_load("user", "7", lambda: NEW, tenant_id="acme") == NEW

        async def refreshed() -> bool:
            return await old.get_or_load("user", "7", lambda: next(values), tenant_id="acme") == {"name": "bob"}

        await until(refreshed)
        assert await read(old, use_memory=False) == {"name": "bob"}
        assert not old.stats().fills_rejected


async def test_batches(redis_url: str) -> None:
    async with two(redis_url, l1=False) as (old, new):
        for cache, value in ((old, OLD), (new, NEW), (old, OLD)):
            asked: list[str] = []

            async def load(ids: list[str], value: Any = value, asked: list[str] = asked) -> dict[str, Any]:
                asked += ids
                return dict.fromkeys(ids, value)

            for _ in range(2):
                found = await cache.get_or_load_many("user", ["1", "2", "3"], load, tenant_id="acme")
                assert found == dict.fromkeys(("1", "2", "3"), value)
            assert sorted(asked) == ["1", "2", "3"]


async def test_a_search_passes_over_it(redis_url: str) -> None:
    async with two(redis_url) as (old, new):
        await old.set("user", "7", OLD, tenant_id="acme", agent_id="a")
        await new.set("user", "7", NEW, tenant_id="acme")
        assert await new.get("user", "7", tenant_id="acme", agent_id="a", search_hierarchy=True) == NEW
        assert await old.get("user", "7", tenant_id="acme", agent_id="a", search_hierarchy=True) == OLD


async def test_a_version_that_is_registered_later_ends_what_memory_holds(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (cache,):
        await cache.set("user", "7", OLD, tenant_id="acme")
        await cache.set("other", "7", OLD, tenant_id="acme")
        source = Source(**{"8": OLD})
        source.hold()
        under_way = asyncio.create_task(cache.get_or_load("user", "8", source.load, tenant_id="acme"))
        await source.asked.wait()
        cache.register(policies={"user": Policy(version=2)})
        assert await read(cache) is None
        assert await cache.get("other", "7", tenant_id="acme") == OLD
        source.release()
        assert await under_way == OLD, "whoever asked before gets what was loaded before"
        assert await cache.get("user", "8", tenant_id="acme") is None


@pytest.mark.parametrize("seed", range(8))
async def test_in_any_order_each_has_its_own_shape_and_nothing_older(redis_url: str, seed: int) -> None:
    """Two nodes of each version, whatever they do at the same time: what was told to be replaced is served by none."""
    dice = random.Random(seed)
    truth = 0

    def of(version: int) -> Any:
        return {"version": version, "count": truth}

    policies = [{"user": Policy(version=i, soft_ttl_s=0.02, fail_safe_s=5, negative_ttl_s=5)} for i in (1, 2)]
    async with (
        nodes(redis_url, 2, policies=policies[0], lease_ms=1000) as old,
        nodes(redis_url, 2, policies=policies[1], lease_ms=1000) as new,
    ):
        fleet = [(cache, 1) for cache in old] + [(cache, 2) for cache in new]

        async def step(least: int, receipt: Any) -> None:
            cache, version = dice.choice(fleet)
            key = ("user", str(dice.randrange(2)))
            if dice.random() < 0.7:

                async def load() -> Any:
                    found = of(version)
                    await asyncio.sleep(dice.choice([0, 0, 0.002]))
                    return found

                found = await cache.get_or_load(*key, load, tenant_id="acme", after=receipt)
            else:
                found = await cache.get(*key, tenant_id="acme", after=receipt, use_memory=dice.random() < 0.5)
            if found is not None:
                assert found["version"] == version
                assert found["count"] >= least

        receipt = None
        for _ in range(30):
            await asyncio.gather(*(step(truth, receipt) for _ in range(12)))
            truth += 1
            cache, version = dice.choice(fleet)
            if dice.random() < 0.3:
                await cache.invalidate("user", "0", tenant_id="acme")
                receipt = await cache.set("user", "1", of(version), tenant_id="acme")
            else:
                receipt = await cache.invalidate_scope(tenant_id="acme", data_type="user")
        assert sum(cache.stats().records_of_other_versions for cache, _ in fleet) > 10


@pytest.mark.parametrize("version", [0, -1, 2**32, True, "2", 1.0, None])
def test_what_is_no_version(version: Any) -> None:
    with pytest.raises(ConfigError, match="version"):
        Policy(version=version)
