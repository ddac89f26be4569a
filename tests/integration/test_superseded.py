"""What a source has said since stands before what it said before, be it stored or not: nothing old stands in again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import pytest

from cachebus import CacheManager, Policy
from cachebus.helpers import get_with_cache_aside
from cachebus.reading.cooldown import KEYS_MAX, Superseded
from cachebus.testing import FakeClock, Fleet
from tests.support.aging import D_S, aging
from tests.support.caches import Source, key_of, nodes, parts, until
from tests.support.patience import expired, read, settled
from tests.support.resting import SHORT

AGED = Policy(ttl_s=10, fail_safe_s=1000, fail_safe_throttle_s=2, retries=0)


@pytest.mark.parametrize("keep_without_l2", [True, False])
@pytest.mark.parametrize("use_memory", [True, False])
@pytest.mark.parametrize("back", [True, False])
async def test_what_was_answered_without_l2(keep_without_l2: bool, use_memory: bool, back: bool) -> None:
    async with aging(1, safe=AGED, keep_without_l2=keep_without_l2) as world:
        (a,) = world.nodes
        source = Source(x="v1")
        await read(a, source, "safe")
        await world.pass_s(11)
        world.fleet.away = True
        source.values["x"] = "v2"
        assert await read(a, source, "safe", use_memory=use_memory) == "v2"
        if back:
            world.fleet.away = False
            await world.pass_s(30)  # what was kept without L2 has gone
        source.error = ConnectionError("down")
        with contextlib.suppress(ConnectionError):
            assert await read(a, source, "safe") == "v2"


async def test_what_the_source_has_denied_since_is_nothing_to_serve_while_another_node_loads() -> None:
    policy = Policy(ttl_s=10, fail_safe_s=1000, load_soft_timeout_s=0.01, negative_ttl_s=None, retries=0)
    async with aging(2, safe=policy) as world:
        a, b = world.nodes
        source = Source(x="alice")
        assert await read(a, source, "safe") == "alice"
        await world.pass_s(11)
        del source.values["x"]
        assert await read(b, source, "safe") is None
        source.hold()
        loads = asyncio.create_task(read(b, source, "safe"))
        await source.asked.wait()
        waits = asyncio.create_task(read(a, source, "safe"))
        assert await asyncio.wait([waits], timeout=0.2) == (set(), {waits})
        source.values["x"] = "bob"
        source.release()
        assert await waits == "bob"
        await loads


async def test_what_l2_refused_to_keep(redis_url: str) -> None:
    """As where the lease was evicted meanwhile."""
    async with nodes(redis_url, 1, policies={"safe": SHORT}, guard_max_s=0) as (a,):
        source = Source(x="v1")
        await read(a, source, "safe")
        await expired(a, "safe")
        store: Any = parts(a).store
        key = key_of(a, "safe", "x", "acme")

        async def load() -> str:
            await store._links.of(key.shard).call("DEL", store._names[key.shard].fill_lease(key))
            return "v2"

        assert await a.get_or_load("safe", "x", load, tenant_id="acme") == "v2"
        assert a.stats().fills_rejected == 1
        source.error = ConnectionError("down")
        with pytest.raises(ConnectionError):
            await read(a, source, "safe")


async def test_what_was_kept_nowhere_for_an_invalidation_that_waits_for_l2() -> None:
    """It is one of a tag that what is stored did not carry yet."""
    clock = FakeClock()
    async with Fleet(1, clock=clock, staleness_bound_s=D_S, policies={"safe": AGED}, pending_max=8) as fleet:
        (a,) = fleet.caches
        source = Source(x="v1")
        await read(a, source, "safe")
        clock.advance(11)
        await fleet.probe()
        source.hold()
        source.values["x"] = "v2"
        loading = asyncio.create_task(read(a, source, "safe", tags=["t"]))
        await source.asked.wait()
        fleet.away = True
        assert (await a.invalidate_tags(["t"], "acme")).status == "pending"
        source.release()
        assert await loading == "v2"
        fleet.away = False
        assert await a.drain(5)
        clock.advance(a.settings.lease_ms / 1000 + 1)  # it could not be given back
        await fleet.probe()
        source.error = ConnectionError("down")
        with pytest.raises(ConnectionError):
            await read(a, source, "safe")


async def test_what_was_made_without_the_source_is_no_fallback(redis_url: str) -> None:
    policy = Policy(ttl_s=1000, fail_safe_s=1000, fail_safe_throttle_s=0.1, retries=0)
    async with nodes(redis_url, 2, policies={"safe": policy}, guard_max_s=0) as (a, b):
        database, generated = Source(x="good"), Source(x="default")
        database.error = ConnectionError("down")
        with patch.object(CacheManager, "_cache", a):
            value, metrics = await get_with_cache_aside("safe", "x", "acme", database.load, generated.load)
        assert (value, metrics["source"]) == ("default", "generation")
        assert await b.get("safe", "x", tenant_id="acme") == "default"
        for cache in (a, b):

            async def fails(cache: Any = cache) -> bool:
                try:
                    assert await read(cache, database, "safe") == "default"
                except ConnectionError:
                    return True
                return False

            await until(fails)


@pytest.mark.parametrize("fails", [False, True])
async def test_no_further_source_is_asked_for_nobody(redis_url: str, fails: bool) -> None:
    async with nodes(redis_url, 1, policies={"safe": SHORT}, guard_max_s=0) as (a,):
        generated = Source(x="default")

        async def database() -> None:
            caller.cancel()
            if fails:
                raise ConnectionError

        with patch.object(CacheManager, "_cache", a):
            aside = get_with_cache_aside("safe", "x", "acme", database, generated.load)
            caller = asyncio.create_task(aside)
            with pytest.raises(asyncio.CancelledError):
                await caller
        await settled(a)
        assert generated.calls == 0


async def test_a_node_that_rests_hears_that_what_it_serves_is_gone() -> None:
    """Another node was told so, and nothing of it is cached."""
    policy = AGED.model_copy(update={"fail_safe_throttle_s": 500})
    async with aging(2, safe=policy) as world:
        a, b = world.nodes
        source = Source(x="old")
        assert [await read(cache, source, "safe") for cache in (a, b)] == ["old", "old"]
        await world.pass_s(11)
        source.error = ConnectionError("down")
        assert await read(b, source, "safe") == "old"
        source.error = None
        del source.values["x"]
        parts(a).policies.register("safe", Policy(ttl_s=10, retries=0))  # which has nothing to serve, and asks
        assert await read(a, source, "safe") is None
        await world.pass_s(2)
        await read(b, source, "safe")
        await settled(b)
        assert await read(b, source, "safe") is None


async def test_who_wants_no_memory_is_given_no_stand_in_out_of_it_by_a_load_that_it_joins() -> None:
    async with aging(1, safe=AGED) as world:
        (a,) = world.nodes
        source = Source(x="v1")
        await read(a, source, "safe")
        await world.pass_s(11)
        source.hold()
        source.error = ConnectionError("down")
        world.fleet.away = True
        first = asyncio.create_task(read(a, source, "safe"))
        await source.asked.wait()
        second = asyncio.create_task(read(a, source, "safe", use_memory=False))
        for _ in range(5):
            await asyncio.sleep(0)
        source.release()
        assert await first == "v1"
        with pytest.raises(ConnectionError):
            await second


async def test_without_l2_a_reader_past_memory_takes_nothing_from_the_others() -> None:
    async with aging(1, safe=AGED) as world:
        (a,) = world.nodes
        source = Source(x="v1")
        await read(a, source, "safe")
        world.fleet.away = True
        source.values["x"] = "v2"
        assert await read(a, source, "safe", use_memory=False) == "v2"
        assert await read(a, source, "safe") == "v1", "its lease goes on"
        assert source.calls == 2


@pytest.mark.parametrize("gives", ["v2", None])
async def test_what_another_has_loaded_without_l2_stays_for_d(gives: str | None) -> None:
    """However often it is read past memory: without L2 a node asks a source once a D for those who use it."""
    async with aging(1, safe=AGED) as world:
        (a,) = world.nodes
        source = Source(x="v1")
        world.fleet.away = True
        assert await read(a, source, "safe") == "v1"
        source.values["x"] = gives
        assert await read(a, source, "safe", use_memory=False) == gives
        assert await read(a, source, "safe") == "v1"
        assert source.calls == 2


@contextlib.asynccontextmanager
async def loaded_without_l2() -> AsyncIterator[tuple[Any, Any, Source]]:
    """A node that has loaded "v1" while L2 was away, which is back; and its source."""
    async with aging(1, safe=AGED) as world:
        (a,) = world.nodes
        source = Source(x="v1")
        world.fleet.away = True
        assert await read(a, source, "safe") == "v1"
        world.fleet.away = False
        yield world, a, source


async def test_a_load_that_l2_was_told_of_leaves_what_was_loaded_without_l2() -> None:
    """It ends by itself, within D of its load."""
    async with loaded_without_l2() as (world, a, source):
        del source.values["x"]
        assert await read(a, source, "safe", use_memory=False) is None
        assert await read(a, source, "safe") == "v1"
        assert source.calls == 2
        await world.pass_s(D_S)
        assert await read(a, source, "safe") is None


async def test_what_was_loaded_without_l2_is_no_fallback() -> None:
    """A guard may have stood that nobody here knew of. Nor does it under a lease that came later."""
    async with loaded_without_l2() as (world, a, source):
        await world.pass_s(D_S)
        world.fleet.away = True
        source.error = ConnectionError("down")
        with pytest.raises(ConnectionError):
            await read(a, source, "safe")


def test_what_is_forgotten_for_want_of_room_brings_nothing_back() -> None:
    superseded = Superseded()
    for number in range(KEYS_MAX + 5):
        superseded.note(f"k{number}", 1000 + number)
    assert superseded.covers("k0", 1000)
    assert superseded.covers(f"k{KEYS_MAX}", 1000 + KEYS_MAX)
    assert not superseded.covers("k0", 1000 + KEYS_MAX), "created since then"


def test_a_load_that_began_earlier_and_is_forgotten_later_brings_nothing_back() -> None:
    superseded = Superseded()
    superseded.note("began late", 200)
    superseded.note("began early", 100)
    for number in range(KEYS_MAX):
        superseded.note(f"k{number}", 300)
    assert superseded.covers("began late", 200)


def test_an_earlier_answer_takes_no_later_ones_place() -> None:
    superseded = Superseded()
    superseded.note("k", 200)
    superseded.note("k", 100)
    assert superseded.covers("k", 150)
