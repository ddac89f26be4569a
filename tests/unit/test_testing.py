"""The twins for users' tests: a fleet in memory, a clock that is turned, faults with a seed."""

from __future__ import annotations

import pytest

from cachebus import Cache, InvalidationFailed, L2Unavailable
from cachebus.base.clock import monotonic
from cachebus.testing import FakeClock, Faults, Fleet


def test_a_fake_clock_stands_still_until_it_is_turned() -> None:
    clock = FakeClock(5.0)
    assert [clock(), clock()] == [5.0, 5.0]
    clock.advance(2.5)
    assert clock() == clock.now_s == 7.5
    clock.advance(0)
    with pytest.raises(ValueError, match="never goes back"):
        clock.advance(-0.1)
    assert clock() == 7.5


# -- faults ----------------------------------------------------------------------------------------------


def passed(faults: Faults, count: int = 1000) -> list[int]:
    """Which of so many messages arrive, in this order."""
    arriving = [m for i in range(count) for m in faults.applied_to(i.to_bytes(4, "big"))]
    return [int.from_bytes(message, "big") for message in arriving]


def test_without_faults_everything_arrives_in_order() -> None:
    assert passed(Faults(seed=1)) == list(range(1000))


def test_the_same_seed_gives_the_same_faults() -> None:
    make = [passed(Faults(seed=seed, drop=0.2, double=0.2, swap=0.2)) for seed in (7, 7, 8)]
    assert make[0] == make[1] != make[2]


def test_each_fault_does_what_it_says() -> None:
    dropped = passed(Faults(drop=0.25))
    assert dropped == sorted(set(dropped))
    assert 650 < len(dropped) < 850
    doubled = passed(Faults(double=0.25))
    assert set(doubled) == set(range(1000))
    assert 1150 < len(doubled) < 1350
    swapped = passed(Faults(swap=0.25))
    assert sorted(swapped) == list(range(len(swapped)))
    assert len(swapped) >= 999  # the last may still be held back
    moved = [i for i, message in enumerate(swapped) if message != i]
    assert 300 < len(moved) < 600
    assert all(abs(message - i) <= 1 for i, message in enumerate(swapped))


def test_dropping_everything_drops_everything() -> None:
    assert passed(Faults(drop=1.0)) == []


# -- fleets ----------------------------------------------------------------------------------------------


async def test_a_fleet_shares_a_store_and_each_node_is_its_own() -> None:
    async with Fleet(nodes=3) as fleet:
        a, b, c = fleet.caches
        await a.set("config", "x", 1, tenant_id="acme")
        assert [await cache.get("config", "x", tenant_id="acme") for cache in (b, c)] == [1, 1]
        assert len({cache.stats().node for cache in fleet.caches}) == 3
        await b.invalidate("config", "x", tenant_id="acme")
        await fleet.settle()
        assert [await cache.get("config", "x", tenant_id="acme") for cache in fleet.caches] == [None] * 3
    with pytest.raises(Exception, match="not open"):
        await a.get("config", "x", tenant_id="acme")


async def test_two_fleets_share_nothing() -> None:
    async with Fleet(1) as one, Fleet(1) as two:
        await one.caches[0].set("config", "x", 1, tenant_id="acme")
        assert await two.caches[0].get("config", "x", tenant_id="acme") is None


async def test_named_memory_is_shared_and_private_memory_is_not() -> None:
    async with Cache.open("memory://here") as a, Cache.open("memory://here") as b, Cache.open("memory://") as c:
        await a.set("config", "x", 1, tenant_id="acme")
        assert await b.get("config", "x", tenant_id="acme") == 1
        assert await c.get("config", "x", tenant_id="acme") is None
    async with Cache.open("memory://here") as d:
        assert await d.get("config", "x", tenant_id="acme") is None  # it goes with the last who opened it


async def test_time_passes_when_the_test_says_so() -> None:
    clock = FakeClock()
    async with Fleet(clock=clock, staleness_bound_s=2.0) as fleet:
        a = fleet.caches[0]
        await a.set("config", "x", 1, tenant_id="acme", ttl=10)
        clock.advance(9)
        assert not a.ready()
        await fleet.probe()
        assert a.ready()
        assert await a.get("config", "x", tenant_id="acme") == 1
        clock.advance(1.5)
        assert await a.get("config", "x", tenant_id="acme") is None


async def test_a_store_that_is_away() -> None:
    async with Fleet(2) as fleet:
        a, b = fleet.caches
        fleet.away = True
        assert fleet.away
        with pytest.raises(L2Unavailable):
            await a.get("config", "x", tenant_id="acme")
        with pytest.raises(InvalidationFailed):
            await a.invalidate("config", "x", tenant_id="acme")
        assert await a.get_or_load("config", "x", lambda: 1, tenant_id="acme") == 1
        fleet.away = False
        await a.set("config", "y", 2, tenant_id="acme")
        assert await b.get("config", "y", tenant_id="acme") == 2


async def test_a_fleet_that_ends_while_its_store_is_away() -> None:
    async with Fleet(2) as fleet:
        fleet.away = True


async def test_faults_may_begin_and_end_while_it_lives() -> None:
    async with Fleet(2, staleness_bound_s=60) as fleet:
        a, b = fleet.caches
        await a.set("config", "x", 1, tenant_id="acme")
        assert await b.get("config", "x", tenant_id="acme") == 1
        fleet.faults = Faults(drop=1.0)
        receipt = await a.set("config", "x", 2, tenant_id="acme")
        await fleet.settle()
        assert await b.get("config", "x", tenant_id="acme") == 1
        assert await b.get("config", "x", tenant_id="acme", after=receipt) == 2
        fleet.faults = None
        await fleet.probe()  # finds what was dropped, and reads the log
        assert b.stats().shards[0].applied == receipt.seq
        assert b.stats().catch_ups == 1


async def test_faults_stay_within_a_shard() -> None:
    """What is held back of one shard's messages must not come out of another's channel."""
    async with Fleet(2, shards=4, faults=Faults(seed=3, swap=0.5)) as fleet:
        a, b = fleet.caches
        for i in range(50):
            await a.set("config", "x", i, tenant_id=f"t{i % 10}")
        fleet.faults = None
        await fleet.settle()
        assert b.stats().flushes == {"start": 4}
        assert b.stats().events_corrupt == 0


async def test_a_fleets_clock_is_the_machines_unless_told() -> None:
    async with Fleet(1) as fleet:
        assert fleet.caches[0]._clock is monotonic
