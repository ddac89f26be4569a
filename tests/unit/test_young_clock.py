"""Nothing depends on what a monotonic clock shows: one that has just begun, or shows less than nothing, is as good."""

from __future__ import annotations

import pytest

from cachebus import Policy
from cachebus.l1 import grid
from cachebus.testing import FakeClock, Faults, Fleet
from tests.support.caches import asked, data_calls, parts

WHERE = {"tenant_id": "acme"}
STARTS_S = [0.0, 0.25, -1.0, -1e6]
D_S = 2.0


def fleet(start_s: float, **settings: object) -> Fleet:
    """Two nodes, and a clock that begins there."""
    return Fleet(2, clock=FakeClock(start_s), staleness_bound_s=D_S, **settings)


async def turned(fleet: Fleet, by_s: float) -> None:
    """Let so much time pass, the leases renewed at its end."""
    clock = parts(fleet.caches[0]).node.clock
    assert isinstance(clock, FakeClock)
    clock.advance(by_s)
    await fleet.probe()


@pytest.mark.parametrize("start_s", STARTS_S)
async def test_what_was_replaced_is_gone_from_memory(start_s: float) -> None:
    async with fleet(start_s) as two:
        a, b = two.caches
        for replace in (
            lambda: a.invalidate("config", "x", **WHERE),
            lambda: a.invalidate_scope("acme", "config"),
            lambda: a.invalidate_tags(["t"], **WHERE),
        ):
            await a.set("config", "x", "old", **WHERE, tags=["t"])
            assert await b.get("config", "x", **WHERE) == await b.get("config", "x", **WHERE) == "old"
            await replace()
            await two.settle()
            assert await b.get("config", "x", **WHERE) is None


@pytest.mark.parametrize("start_s", STARTS_S)
async def test_without_a_lease_memory_is_not_served(start_s: float) -> None:
    async with fleet(start_s) as two:
        a, b = two.caches
        await a.set("config", "x", "old", **WHERE)
        two.faults = Faults(drop=1.0)
        assert await b.get("config", "x", **WHERE) == "old"
        await a.set("config", "x", "new", **WHERE)
        assert await b.get("config", "x", **WHERE) == "old", "it has heard nothing, and its lease lives"
        parts(b).node.clock.advance(D_S)  # type: ignore[attr-defined]
        assert not b.ready()
        assert await b.get("config", "x", **WHERE) == "new"


@pytest.mark.parametrize("start_s", STARTS_S)
async def test_what_expires_does_so_in_its_time(start_s: float) -> None:
    async with fleet(start_s) as two:
        a, b = two.caches
        await a.set("config", "x", 1, **WHERE, ttl=10)
        await a.set("config", "kept", 1, **WHERE, ttl=20)
        await turned(two, 9)
        assert [await cache.get("config", "x", **WHERE) for cache in (a, b)] == [1, 1]
        await turned(two, 1.5)
        assert [await cache.get("config", "x", **WHERE) for cache in (a, b)] == [None, None]
        assert [await cache.get("config", "kept", **WHERE) for cache in (a, b)] == [1, 1]
        assert await a.add("config", "x", 2, **WHERE)


@pytest.mark.parametrize("start_s", STARTS_S)
async def test_what_takes_the_slow_path_is_what_the_slow_path_gives(start_s: float) -> None:
    policies = {"copied": Policy(copy=True), "absent": Policy(negative_ttl_s=30)}
    async with fleet(start_s, policies=policies) as two:
        a, b = two.caches
        await a.set("copied", "x", [1], **WHERE)
        assert await b.get("copied", "x", **WHERE) is not await b.get("copied", "x", **WHERE)
        assert await a.get_or_load("absent", "x", lambda: None, **WHERE) is None
        assert [await a.get("absent", "x", **WHERE, default="none") for _ in range(2)] == ["none"] * 2
        assert await b.get_or_load("absent", "x", lambda: 1, **WHERE) is None, "it is known to be absent"
        assert await a.get("config", "x", **WHERE, agent_id="a7", search_hierarchy=True) is None
        assert await a.get("config", "x", **WHERE, default="none") == "none"


@pytest.mark.parametrize("start_s", STARTS_S)
async def test_an_absence_that_was_found_without_a_lease_is_not_remembered(start_s: float) -> None:
    async with fleet(start_s) as two:
        a = two.caches[0]
        parts(a).node.void(0, "gap")
        for _ in range(2):
            with asked(a) as counts:
                assert await a.get("config", "x", **WHERE, agent_id="a7", search_hierarchy=True) is None
            assert data_calls(counts) == 1


@pytest.mark.parametrize("start_s", STARTS_S)
async def test_what_is_over_leaves_memory_with_a_sweep(start_s: float) -> None:
    async with fleet(start_s) as two:
        a = two.caches[0]
        await a.set("config", "x", 1, **WHERE, ttl=10)
        assert await a.get("config", "absent", **WHERE, agent_id="a7", search_hierarchy=True) is None
        assert len(parts(a).node.l1) == 3
        await turned(two, 10.5)
        assert sum(parts(a).node.sweep()) == 3


@pytest.mark.parametrize("start_s", STARTS_S)
async def test_a_value_is_a_fallback_for_as_long_as_it_may(start_s: float) -> None:
    def fails() -> None:
        raise OSError("the source is down")

    async with fleet(start_s, policies={"config": Policy(ttl_s=10, fail_safe_s=20, retries=0)}) as two:
        a = two.caches[0]
        assert await a.get_or_load("config", "x", lambda: 1, **WHERE) == 1
        await turned(two, 25)
        assert await a.get_or_load("config", "x", fails, **WHERE) == 1
        await turned(two, 6)
        with pytest.raises(OSError, match="down"):
            await a.get_or_load("config", "x", fails, **WHERE)


@pytest.mark.parametrize("start_s", STARTS_S)
async def test_guards_leases_counters_and_waits_end_in_their_time(start_s: float) -> None:
    async with fleet(start_s) as two:
        a, b = two.caches
        async with a.write_guard([("config", "x")], **WHERE, timeout_s=5, db_timeout_s=3):
            assert not (await b.set("config", "x", 1, **WHERE)).stored
            await turned(two, 5.5)
            assert (await b.set("config", "x", 1, **WHERE)).stored
        for _ in range(2):
            assert await a.increment("count", **WHERE, expires_in_s=10, request_id="r") == 1
            assert await a.increment("count", **WHERE, expires_in_s=10, request_id="r") == 1
            for _ in range(3):
                await turned(two, 20.5)  # a node that says nothing for 60 s is taken for gone
        receipt = await a.invalidate("config", "x", **WHERE, wait="nodes")
        assert len(receipt.confirmed) == 2


@pytest.mark.parametrize("start_s", STARTS_S)
async def test_without_l2_a_load_is_kept_for_d(start_s: float) -> None:
    loads: list[int] = []
    two = fleet(start_s, start_degraded=True)
    two.away = True
    async with two:
        a = two.caches[0]
        for after_s, count in ((0.0, 1), (1.0, 1), (1.5, 2)):
            parts(a).node.clock.advance(after_s)  # type: ignore[attr-defined]
            assert await a.get_or_load("config", "x", lambda: loads.append(1) or 1, **WHERE) == 1
            assert len(loads) == count
        two.away = False
        await parts(a).store.connect()
        await a.set("config", "x", 2, **WHERE)  # the server has not told its time yet
        assert await a.get("config", "x", **WHERE, use_memory=False) == 2


def test_never_is_on_every_grid() -> None:
    assert grid(float("-inf"), 2.0) == float("-inf")
    assert grid(-1.01, 2.0) <= -1.01
