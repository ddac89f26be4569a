"""Whoever is slow: loaders overtaken by invalidations, and an event loop that stands still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest

from cachebus import Cache, L2Unavailable, Receipt
from cachebus.base.clock import monotonic
from cachebus.testing import Fleet
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, Source, deaf, heard, nodes, parts, past, until

INVALIDATIONS: dict[str, Callable[[Cache], Awaitable[Receipt]]] = {
    "key": lambda cache: cache.invalidate("config", "x", tenant_id="acme"),
    "contexts": lambda cache: cache.invalidate("config", "x", tenant_id="acme", contexts="all"),
    "type": lambda cache: cache.invalidate_scope("acme", "config"),
    "tenant": lambda cache: cache.invalidate_scope("acme"),
    "tag": lambda cache: cache.invalidate_tags(["t"], tenant_id="acme"),
}


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[Cache]]:
    """Two nodes over one server; leases are short."""
    async with nodes(redis_url, lease_ms=100) as caches:
        yield caches


def stand_still(seconds: float) -> None:
    """Hold the event loop."""
    threading.Event().wait(seconds)


# -- slow loaders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hears", [True, False], ids=["hearing", "deaf"])
async def test_a_load_longer_than_its_lease_with_an_invalidation_in_between_never_enters_l2(
    redis_url: str, hears: bool
) -> None:
    async def scenario(how: str) -> None:
        async with nodes(redis_url, lease_ms=100, namespace=how) as (a, b):
            source = Source(x="old")
            source.hold()
            loading = asyncio.create_task(a.get_or_load("config", "x", source.load, tenant_id="acme", tags=["t"]))
            await source.asked.wait()
            source.values["x"] = "new"
            with nullcontext() if hears else deaf(a):
                receipt = await INVALIDATIONS[how](b)
                if hears:
                    await heard([a], receipt)
            await past(monotonic() + 0.25)  # its lease would have ended twice
            source.release()
            assert await loading == "old"
            assert await b.get("config", "x", tenant_id="acme", use_memory=False) is None, how
            assert a.stats().fills_rejected == 1
            if hears:
                assert await a.get("config", "x", tenant_id="acme") is None, how
            await past(monotonic() + D_S)
            assert await a.get("config", "x", tenant_id="acme") is None, how
            assert await b.get_or_load("config", "x", source.load, tenant_id="acme") == "new"

    await asyncio.gather(*map(scenario, INVALIDATIONS))


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_an_own_invalidation_during_an_own_load(pair: list[Cache], how: str) -> None:
    a, b = pair
    source = Source(x="old")
    source.hold()
    loading = asyncio.create_task(a.get_or_load("config", "x", source.load, tenant_id="acme", tags=["t"]))
    await source.asked.wait()
    source.values["x"] = "new"
    with deaf(a):
        await INVALIDATIONS[how](a)
    late = asyncio.create_task(a.get_or_load("config", "x", source.load, tenant_id="acme", tags=["t"]))
    await asyncio.sleep(0)
    source.release()
    assert [await loading, await late] == ["old", "new"]
    for cache in (a, b):
        assert await cache.get("config", "x", tenant_id="acme") == "new"


async def test_a_load_overtaken_by_a_set_leaves_the_set(pair: list[Cache]) -> None:
    a, b = pair
    source = Source(x="old")
    source.hold()
    loading = asyncio.create_task(a.get_or_load("config", "x", source.load, tenant_id="acme"))
    await source.asked.wait()
    await b.set("config", "x", "set", tenant_id="acme")
    source.release()
    await loading
    for cache in (b, a):
        assert await cache.get("config", "x", tenant_id="acme", use_memory=False) == "set"
    await past(monotonic() + D_S)
    assert await a.get("config", "x", tenant_id="acme") == "set"


async def test_a_loader_slower_than_an_invalidation_without_l2_serves_it_for_d_at_most() -> None:
    """The store comes back, the invalidation goes through, and only then the load that began before it ends."""
    async with Fleet(2, staleness_bound_s=D_S, probe_interval_s=0.1, gap_grace_s=0.02) as fleet:
        a, b = fleet.caches
        source = Source(x="old")
        fleet.away = True
        source.hold()
        loading = asyncio.create_task(a.get_or_load("config", "x", source.load, tenant_id="acme"))
        await source.asked.wait()
        began_s = monotonic()
        fleet.away = False
        source.values["x"] = "new"
        receipt = await b.invalidate("config", "x", tenant_id="acme")
        source.release()
        assert await loading == "old"
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme", after=receipt) == "new"
        await past(began_s + D_S)
        for cache in (a, b):
            assert await cache.get_or_load("config", "x", source.load, tenant_id="acme") == "new"


async def test_a_loader_slower_than_an_invalidation_by_others_while_only_its_node_is_cut_off(
    own_server: EmbeddedServer,
) -> None:
    async with nodes(own_server.url, 2) as (a, b):
        source = Source(x="old")
        source.hold()
        loading = asyncio.create_task(a.get_or_load("config", "x", source.load, tenant_id="acme"))
        await source.asked.wait()
        began_s = monotonic()
        store: Any = parts(a).store
        reach = store.reach

        async def refuse(_shard: int) -> None:
            await asyncio.sleep(0.01)
            raise L2Unavailable("cut off")

        store.reach = refuse
        with deaf(a):
            store._links.of(0).close()
            source.values["x"] = "new"
            await b.invalidate("config", "x", tenant_id="acme")
            source.release()
            assert await loading == "old"
            await past(began_s + D_S)
            assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == "new"
        store.reach = reach
        await until(a.ready)
        assert await b.get("config", "x", tenant_id="acme") is None


# -- a loop that stands still ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_after_the_event_loop_stood_still_for_longer_than_d_nothing_old_is_served(
    redis_url: str, how: str
) -> None:
    async with nodes(redis_url, 1, staleness_bound_s=0.3, probe_interval_s=0.05) as (a,):
        await a.set("config", "x", "old", tenant_id="acme", tags=["t"])
        assert await a.get("config", "x", tenant_id="acme") == "old"

        def elsewhere() -> None:
            async def write() -> None:
                async with nodes(redis_url, 1) as (b,):
                    await INVALIDATIONS[how](b)

            asyncio.run(write())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()  # holds the loop: nothing of this is heard
        stand_still(0.31)
        assert await a.get("config", "x", tenant_id="acme") is None


async def test_a_stall_during_a_probe_does_not_set_the_servers_clock_wrong(pair: list[Cache]) -> None:
    """The answer lay there while the loop stood still: half of that would count as its way back."""
    a, b = pair
    probing = asyncio.create_task(a.probe())
    for _ in range(3):
        await asyncio.sleep(0)  # the question goes out
    stand_still(0.4)
    await probing
    await a.set("config", "x", 1, tenant_id="acme", ttl=0.15)
    assert await b.get("config", "x", tenant_id="acme") == 1


async def test_a_stall_is_not_taken_for_an_outage(pair: list[Cache]) -> None:
    a = pair[0]
    await a.set("config", "x", 1, tenant_id="acme")
    reading = asyncio.create_task(a.get("config", "x", tenant_id="acme", use_memory=False))
    await asyncio.sleep(0)
    stand_still(0.9)  # longer than l2_timeout_s
    assert await reading == 1
    assert await a.get("config", "x", tenant_id="acme") == 1
    assert a.stats().reconnects == 0
