"""What reading L2 must not stumble over, what an invalidation leaves to look at, and what a write of unknown outcome
must not spoil for good."""

from __future__ import annotations

import pytest

from cachebus.testing import FakeClock, Fleet
from tests.support.caches import key_of, parts


async def test_arrays_are_read_from_l2() -> None:
    """A value is told from a sentinel by identity: an array compares with `==` element by element."""
    numpy = pytest.importorskip("numpy", reason="needs numpy; to get it: pip install 'cachebus[numpy]'")
    async with Fleet(nodes=2) as fleet:
        a, b = fleet.caches
        await a.set("embedding", "1", numpy.arange(3), tenant_id="acme")
        await a.set("embedding", "2", numpy.arange(4), tenant_id="acme")
        found = await b.get_many("embedding", ["1", "2"], tenant_id="acme")
        assert {i: len(array) for i, array in found.items()} == {"1": 3, "2": 4}
        loaded = await b.get_or_load("embedding", "1", lambda: None, tenant_id="acme", use_memory=False)
        assert loaded.tolist() == [0, 1, 2]


async def test_a_key_once_forgotten_enters_l1_again() -> None:
    """A write of unknown outcome drops its key from L1 now; later writes of it are ordinary ones."""
    async with Fleet(nodes=1) as fleet:
        (cache,) = fleet.caches
        parts = cache._live()
        parts.node.forget(0, [key_of(cache, "config", "x", "acme")])
        await cache.set("config", "x", 1, tenant_id="acme")
        await cache.set("config", "x", 2, tenant_id="acme")
        before = cache.stats().l1_hits
        assert await cache.get("config", "x", tenant_id="acme") == 2
        assert cache.stats().l1_hits == before + 1


async def test_a_renewed_lease_reaches_what_is_held_already() -> None:
    """Else each hit takes the slow path from D after its group began: as right, and many times as slow."""
    clock = FakeClock()
    async with Fleet(1, clock=clock, staleness_bound_s=2.0) as fleet:
        (cache,) = fleet.caches
        await cache.set("config", "x", 1, "acme")
        group = parts(cache).node.l1.entries[key_of(cache, "config", "x", "acme").l1].group
        clock.advance(1.5)
        await fleet.probe()
        assert group.valid_until_s == clock() + 2.0


async def test_a_value_that_a_tags_invalidation_spares_is_looked_at_once() -> None:
    """Else each hit takes the slow path until the value expires: as right, and many times as slow."""
    async with Fleet(1) as fleet:
        (cache,) = fleet.caches
        for number in ("1", "2"):
            await cache.set("config", number, number, "acme", tags=[number])
        await cache.invalidate_tags(["1"], "acme")
        node, name = parts(cache).node, key_of(cache, "config", "2", "acme").l1
        assert not node.groups.holds(node.l1.entries[name])
        assert await cache.get("config", "2", "acme") == "2"
        assert node.groups.holds(node.l1.entries[name])


async def test_nothing_is_said_to_be_absent_while_it_is_blocked() -> None:
    """A search that leaves a level out, as L2 is not to be believed of it, has not seen that L2 has nothing there."""
    async with Fleet(1) as fleet:
        (cache,) = fleet.caches
        await cache.set("config", "x", 1, "acme")
        blocked = 0, [key_of(cache, "config", "x", "acme")], ()
        parts(cache).node.block(*blocked)
        parts(cache).node.forget(0, blocked[1])

        async def searched() -> object:
            return await cache.get("config", "x", "acme", agent_id="a7", search_hierarchy=True)

        assert await searched() is None
        parts(cache).node.unblock(*blocked)
        assert await searched() == 1
