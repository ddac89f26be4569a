"""What docs/guarantees.md says is not promised, where it is a limit that a call can run into: how far it goes."""

from __future__ import annotations

import asyncio

from cachebus import Cache, Settings
from cachebus.assembly.factory import World
from cachebus.testing import FakeClock, Faults, Fleet

KEY = ("price", "book-1")


async def test_a_value_that_was_read_before_an_invalidation_and_set_after_it_is_kept() -> None:
    """By hand, that is: the cache can't know when its caller read the source. A load is fenced."""
    source = {"price": "old"}
    async with Fleet(nodes=2) as fleet:
        one, other = fleet.caches
        read_early = source["price"]
        source["price"] = "new"
        await other.invalidate(*KEY, tenant_id="acme")
        await one.set(*KEY, read_early, tenant_id="acme")
        assert await one.get(*KEY, tenant_id="acme") == "old"

        await one.invalidate(*KEY, tenant_id="acme")
        source["price"] = "old"
        may_go_on = asyncio.Event()

        async def load(resource_id: str) -> str:
            found = source["price"]
            await may_go_on.wait()
            return found

        loading = asyncio.create_task(one.get_or_load(*KEY, load, tenant_id="acme"))
        await fleet.settle()
        source["price"] = "new"
        await other.invalidate(*KEY, tenant_id="acme")
        may_go_on.set()
        await loading
        assert await one.get(*KEY, tenant_id="acme", use_memory=False) is None
        assert await one.get_or_load(*KEY, load, tenant_id="acme") == "new"


async def test_of_several_sets_that_one_stays_which_l2_ran_last() -> None:
    async with Fleet(nodes=2) as fleet:
        one, other = fleet.caches
        read_first, read_last = "read first", "read last"
        await other.set(*KEY, read_last, tenant_id="acme")
        await one.set(*KEY, read_first, tenant_id="acme")
        for cache in fleet.caches:
            assert await cache.get(*KEY, tenant_id="acme", use_memory=False) == read_first


async def test_a_clock_that_stood_still_is_noticed_by_the_next_probe_and_not_before() -> None:
    """As that of a machine which was suspended: while it slept, D went by elsewhere, and here it did not."""
    suspended, elsewhere = FakeClock(), FakeClock()
    settings = Settings(url="memory://", staleness_bound_s=240, probe_interval_s=120)  # no probe but the test's own
    world = World(settings.model_copy(update={"shards": 1}), elsewhere)
    async with (
        Cache(settings, world=world, clock=suspended) as one,
        Cache(settings, world=world, clock=elsewhere) as other,
    ):
        await one.set(*KEY, "old", tenant_id="acme")
        lost = Faults(drop=1.0)
        deliver = world.shards[0].publish
        world.shards[0].publish = lambda message: [deliver(each) for each in lost.applied_to(message)]
        elsewhere.advance(1_000.0)
        await other.set(*KEY, "new", tenant_id="acme")
        assert await one.get(*KEY, tenant_id="acme") == "old"
        await one.probe()
        assert await one.get(*KEY, tenant_id="acme") == "new"
