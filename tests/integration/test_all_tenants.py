"""Invalidations of all tenants: a data type, or everything, in every shard."""

from __future__ import annotations

import asyncio

import pytest

from cachebus import Cache, Receipt
from cachebus.producers import DirectProducer
from tests.support.caches import key_of, nodes, quick, until

SHARDS = 4
TENANTS = [f"tenant-{number}" for number in range(12)]


async def filled(a: Cache, b: Cache) -> None:
    """Both nodes have two types of every tenant in memory."""
    for tenant in TENANTS:
        await a.set("price", "x", 1, tenant, tags=["t"])
        await a.set("stock", "x", 1, tenant, agent_id="a7")
    for tenant in TENANTS:
        assert await b.get("price", "x", tenant) == await b.get("stock", "x", tenant, "a7") == 1
        assert await a.get("price", "x", tenant) == await a.get("stock", "x", tenant, "a7") == 1


async def test_a_type_ends_for_every_tenant_and_no_other_type_does(redis_url: str) -> None:
    async with nodes(redis_url, 2, shards=SHARDS) as (a, b):
        assert len({key_of(a, "price", "x", tenant).shard for tenant in TENANTS}) == SHARDS
        await filled(a, b)
        receipt = await a.invalidate_type("price", wait="nodes")
        assert [part.shard for part in receipt.parts] == list(range(SHARDS))
        assert receipt.targets == {"price": 1}
        assert len(receipt.confirmed) == 2
        for cache in (a, b):
            loads = cache.stats().l2_hits
            for tenant in TENANTS:
                assert await cache.get("price", "x", tenant) is None
                assert await cache.get("stock", "x", tenant, "a7") == 1
            assert cache.stats().l2_hits == loads, "what is of another type is still in memory"


async def test_a_read_after_the_receipt_sees_it_in_the_shard_of_its_key(redis_url: str) -> None:
    async with nodes(redis_url, 2, shards=SHARDS) as (a, b):
        await filled(a, b)
        receipt = Receipt.parse(str(await a.invalidate_type("price")))
        assert await asyncio.gather(*(b.get("price", "x", tenant, after=receipt) for tenant in TENANTS)) == [None] * 12
        assert await b.get_many("price", ["x", "y"], TENANTS[0], after=receipt) == {}
        assert await b.get_or_load("price", "x", lambda: 2, TENANTS[0], after=receipt) == 2


async def test_clear_ends_everything_but_counters(redis_url: str) -> None:
    async with nodes(redis_url, 2, shards=SHARDS) as (a, b):
        await filled(a, b)
        await a.increment("visits", TENANTS[0], 5)
        receipt = await b.clear(wait="nodes")
        assert len(receipt.parts) == SHARDS
        for cache in (a, b):
            for tenant in TENANTS:
                assert await cache.get("price", "x", tenant) is None
                assert await cache.get("stock", "x", tenant, "a7") is None
        assert await a.increment("visits", TENANTS[0], 0) == 5


async def test_a_load_that_had_begun_is_not_kept(redis_url: str) -> None:
    async with nodes(redis_url, 1, shards=SHARDS) as (cache,):
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def load() -> int:
            begun.set()
            await go_on.wait()
            return 1

        loading = asyncio.create_task(cache.get_or_load("price", "x", load, TENANTS[0]))
        await begun.wait()
        await cache.invalidate_type("price")
        go_on.set()
        assert await loading == 1
        assert await cache.get("price", "x", TENANTS[0]) is None


async def test_of_one_shard_the_receipt_is_an_ordinary_one(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (cache,):
        receipt = await cache.clear()
        assert (receipt.parts, receipt.failed) == ((), ())
        assert Receipt.parse(str(receipt)).position == receipt.position


async def test_a_producer_does_it_too(redis_url: str) -> None:
    async with nodes(redis_url, 2, shards=SHARDS) as (a, b):
        await filled(a, b)
        async with DirectProducer.open(quick(redis_url, shards=SHARDS)) as producer:
            receipt = await producer.invalidate_type("price")
            assert await a.get("price", "x", TENANTS[0], after=receipt) is None
            assert await a.get("stock", "x", TENANTS[0], "a7", after=receipt) == 1
            await producer.clear(wait="nodes")
        assert await b.get("stock", "x", TENANTS[0], "a7") is None


@pytest.mark.parametrize("name", ["", None, "a\nb"])
async def test_what_is_no_type_is_refused(redis_url: str, name: str | None) -> None:
    async with nodes(redis_url, 1) as (cache,):
        await cache.set("price", "x", 1, "acme")
        with pytest.raises(ValueError, match="data_type"):
            await cache.invalidate_type(name)  # type: ignore[arg-type]
        assert await cache.get("price", "x", "acme") == 1


async def test_what_waits_for_its_shard_is_no_reason_to_load_in_another(redis_url: str) -> None:
    """A queued invalidation of all tenants has one name in every shard."""
    async with nodes(redis_url, 2, shards=SHARDS, pending_max=10) as (a, b):
        await filled(a, b)
        (plan, *_) = a._live().planner.type_of_all_tenants("price")
        a._live().node.block(plan.shard, plan.keys, plan.scopes)
        here, there = (
            next(tenant for tenant in TENANTS if (key_of(a, "price", "x", tenant).shard == plan.shard) is same)
            for same in (True, False)
        )
        assert await a.get_or_load("price", "x", lambda: 2, there, use_memory=False) == 1
        assert await a.get_or_load("price", "x", lambda: 2, here, use_memory=False) == 2
        a._live().node.unblock(plan.shard, plan.keys, plan.scopes)
        await until(lambda: a._live().node.blocked is None)
