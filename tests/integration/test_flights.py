"""Loads that are shared: who may join, what becomes of those who wait, and what a source that fails is spared."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import patch

import pytest

from cachebus import Cache, L2Unavailable, LoadTimeout, Policy
from cachebus.base.clock import monotonic
from cachebus.core.ports import FillLeaseOutcome, FillLeaseReply
from cachebus.core.requests import FillLeaseRequest
from cachebus.testing import FakeClock, Fleet
from tests.support.aging import aging
from tests.support.caches import D_S, Source, deaf, nodes, parts, past, until

SAFE = Policy(ttl_s=10, fail_safe_s=1000, retries=0, fail_safe_throttle_s=10)
COPIED = Policy(copy=True, ttl_s=10, fail_safe_s=1000, retries=0)


def reading(cache: Cache, source: Source, data_type: str = "config", **more: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(cache.get_or_load(data_type, "x", source.load, tenant_id="acme", **more))


# -- who joins, and who is told what ------------------------------------------------------------------------------


async def test_who_comes_while_a_load_is_being_cancelled_loads_anew(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (a,):
        source = Source(x=1)
        source.hold()
        first = reading(a, source)
        await source.asked.wait()
        first.cancel()
        await asyncio.sleep(0)  # it is cancelled, and the load with it; both are yet to end
        source.release()
        assert await asyncio.gather(*(reading(a, source) for _ in range(4))) == [1] * 4
        with pytest.raises(asyncio.CancelledError):
            await first
        assert source.calls == 2


async def test_who_comes_while_others_cancel_a_load_loads_anew() -> None:
    """Whoever cancels all tasks of a loop ends a load, too, though its caller still waits."""
    async with Fleet(1) as fleet:
        (a,) = fleet.caches
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def slow_to_end() -> Any:
            try:
                asked.set()
                await asyncio.Event().wait()
            finally:
                await go_on.wait()

        first = asyncio.create_task(a.get_or_load("config", "x", slow_to_end, tenant_id="acme"))
        await asked.wait()
        (flight,) = (task for task in asyncio.all_tasks() if task.get_name() == "cachebus-flight")
        flight.cancel()
        second = reading(a, Source(x="v"))
        await fleet.settle()
        go_on.set()
        with pytest.raises(LoadTimeout, match="was cancelled"):
            await first
        assert await asyncio.wait_for(second, 5) == "v"


async def test_who_comes_when_an_older_load_has_ended_joins_the_newer() -> None:
    async with Fleet(1) as fleet:
        (a,) = fleet.caches
        older, newer = Source(x="old"), Source(x="new")
        older.hold()
        newer.hold()
        first = reading(a, older)
        await older.asked.wait()
        await a.invalidate("config", "x", tenant_id="acme")
        second = reading(a, newer)
        await newer.asked.wait()
        older.release()
        assert await first == "old"
        third = reading(a, newer)
        await fleet.settle()
        assert a.stats().flights == 1
        newer.release()
        assert (await second, await third) == ("new", "new")


async def test_who_comes_later_than_d_after_the_leases_probe_joins_no_read_that_began_under_it() -> None:
    clock, source = FakeClock(), Source(x="v")
    async with Fleet(1, clock=clock, staleness_bound_s=600.0, probe_interval_s=300.0) as fleet:
        (a,) = fleet.caches
        store, go_on, attention = parts(a).store, asyncio.Event(), cast("Any", parts(a).listening.attention)
        await until(lambda: attention._wanted[0]._waiters)  # it has probed, and rests
        get = store.get

        async def get_late(key: Any) -> Any:
            await go_on.wait()
            return await get(key)

        store.get = get_late  # type: ignore[method-assign]
        asking = []
        for later_s, flights in ((450, 1), (100, 1), (100, 2)):
            clock.advance(later_s)
            asking.append(reading(a, source))
            await fleet.settle()
            assert a.stats().flights == flights
        go_on.set()
        assert await asyncio.gather(*asking) == ["v"] * 3


async def test_who_is_cancelled_before_it_hears_that_it_may_load_gives_the_lease_back() -> None:
    async with Fleet(2, clock=FakeClock()) as fleet:
        a, b = fleet.caches
        store, granted = parts(a).store, asyncio.Event()
        lease = store.fill_lease

        async def lease_unheard(*args: Any, **more: Any) -> Any:
            await lease(*args, **more)
            granted.set()
            await asyncio.Event().wait()

        store.fill_lease = lease_unheard  # type: ignore[method-assign]
        source = Source(x="v")
        first = reading(a, source)
        await granted.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await asyncio.wait_for(reading(b, source), 5) == "v"


async def test_a_loader_that_cancels_itself_has_failed_and_the_cache_is_not_closed(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (a,):

        async def load() -> Any:
            raise asyncio.CancelledError

        for _ in range(2):
            with pytest.raises(LoadTimeout, match="cancelled from within"):
                await a.get_or_load("config", "x", load, tenant_id="acme")
        assert await a.get_or_load("config", "x", Source(x=1).load, tenant_id="acme") == 1


async def test_closed_is_said_when_it_is_closed(redis_url: str) -> None:
    async with nodes(redis_url, 1, close_timeout_s=0.01) as (a,):
        source = Source(x=1)
        source.hold()
        waiting = reading(a, source)
        await source.asked.wait()
        await a.aclose()
        with pytest.raises(L2Unavailable, match="was closed"):
            await waiting


async def test_a_joiners_tag_and_shorter_ttl_count() -> None:
    async with aging() as world:
        a, b = world.nodes
        source = Source(x=1)
        source.hold()
        first, second = reading(a, source), reading(a, source, tags=["t"], ttl=5)
        await source.asked.wait()
        source.release()
        assert [await first, await second] == [1, 1]
        assert source.calls == 1
        await b.invalidate_tags(["t"], tenant_id="acme")
        await world.fleet.settle()
        source.values["x"] = 2
        assert await reading(a, source) == 2
        await world.pass_s(6)
        assert await a.get("config", "x", tenant_id="acme") == 2, "who has not asked for a shorter life"
        third, fourth = reading(b, source), reading(b, source, ttl=5)
        assert [await third, await fourth] == [2, 2]


async def test_a_shorter_ttl_of_one_who_joins_ends_it_for_all() -> None:
    async with aging() as world:
        a, _ = world.nodes
        source = Source(x=1)
        source.hold()
        first, second = reading(a, source), reading(a, source, ttl=5)
        await source.asked.wait()
        source.release()
        await asyncio.gather(first, second)
        await world.pass_s(6)
        assert await a.get("config", "x", tenant_id="acme") is None


async def test_who_brings_a_tag_that_was_invalidated_since_it_began_does_not_join() -> None:
    async with aging() as world:
        a, b = world.nodes
        source = Source(x=1)
        source.hold()
        first = reading(a, source)
        await source.asked.wait()
        source.values["x"] = 2
        await b.invalidate_tags(["t"], tenant_id="acme")
        await world.fleet.settle()
        second = reading(a, source, tags=["t"])
        await until(lambda: len(parts(a).loads.flights) == 2)
        source.release()
        assert await second == 2
        await first


# -- what comes back --------------------------------------------------------------------------------------------


async def test_each_caller_of_a_shared_load_has_a_copy_of_its_own() -> None:
    async with aging(copied=COPIED) as world:
        a, b = world.nodes
        source = Source(x={"items": [1]})
        source.hold()
        waiting = [reading(cache, source, "copied") for cache in (a, a, b, b)]
        await source.asked.wait()
        source.release()
        values = await asyncio.gather(*waiting)
        each_has_its_own(values)
        assert await reading(a, source, "copied") == {"items": [1]}
        await world.pass_s(11)
        source.error = RuntimeError("down")
        stale = [await reading(cache, source, "copied") for cache in (a, a, b, b)]
        each_has_its_own(stale)


async def test_so_has_each_of_several_that_one_look_at_l2_serves(redis_url: str) -> None:
    async with nodes(redis_url, 2, policies={"copied": COPIED}) as (a, b):
        await a.set("copied", "x", {"items": [1]}, tenant_id="acme")
        source = Source()
        each_has_its_own(await asyncio.gather(*(reading(b, source, "copied") for _ in range(3))))
        assert source.calls == 0


def each_has_its_own(values: list[Any]) -> None:
    """What one writes into its value, no other one sees."""
    for number, value in enumerate(values):
        value["items"].append(number)
    assert values == [{"items": [1, number]} for number in range(len(values))]


@dataclasses.dataclass
class Row:
    """One whose field was never set: its own repr and encoding raise."""

    id: int
    total: float = dataclasses.field(init=False)


MADE = {"unset": lambda: Row(1), "object": object, "set": lambda: {1, object()}}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE.keys())
async def test_whatever_a_loader_returns_the_lease_is_released(redis_url: str, made: Callable[[], Any]) -> None:
    value = made()
    async with nodes(redis_url, 2, lease_ms=60_000) as (a, b):
        assert await a.get_or_load("config", "x", lambda: value, tenant_id="acme") is value
        assert a.stats().types["config"].serialization_errors == 1
        began_s = monotonic()
        assert await b.get_or_load("config", "x", Source(x=1).load, tenant_id="acme") == 1
        assert monotonic() - began_s < 30, "the lease lasts a minute"


# -- sources that fail --------------------------------------------------------------------------------------------


async def test_a_source_that_fails_is_asked_once_in_a_while_and_by_one_node() -> None:
    async with aging(3, safe=SAFE) as world:
        source = Source(x=1)
        await reading(world.nodes[0], source, "safe")
        await world.pass_s(11)
        source.error = RuntimeError("down")
        for _ in range(20):
            for cache in world.nodes:
                assert await reading(cache, source, "safe") == 1
        assert source.calls == 2
        await world.pass_s(15)
        for _ in range(20):
            for cache in world.nodes:
                assert await reading(cache, source, "safe") == 1
        await until(lambda: not any(len(parts(cache).loads.flights) for cache in world.nodes))
        assert source.calls == 3


async def test_a_source_that_hangs_after_it_has_failed_holds_no_reader() -> None:
    async with aging(1, safe=SAFE) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await reading(a, source, "safe")
        await world.pass_s(11)
        source.error = RuntimeError("down")
        assert await reading(a, source, "safe") == 1
        await world.pass_s(15)
        source.hold()
        for _ in range(5):
            assert await reading(a, source, "safe") == 1
        await source.asked.wait()
        assert source.calls == 3, "one waits for it, in the background"
        source.release()


async def test_without_anything_to_serve_the_next_caller_tries() -> None:
    async with aging(1, plain=Policy(retries=0)) as world:
        source = Source(x=1)
        source.error = RuntimeError("down")
        for calls in (1, 2, 3):
            with pytest.raises(RuntimeError, match="down"):
                await reading(world.nodes[0], source, "plain")
            assert source.calls == calls


@pytest.mark.parametrize("kept", ["absent", "in doubt"])
async def test_without_anything_to_serve_one_of_all_nodes_tries(redis_url: str, kept: str) -> None:
    """What L2 keeps of the key may do for nobody: "not found" is no value, and what was made when a takeover may have
    lost guards is in doubt."""
    brief = Policy(ttl_s=0.3, negative_ttl_s=0.3, fail_safe_s=1000, retries=0)
    most_s = 60 if kept == "in doubt" else 0
    async with nodes(redis_url, 4, policies={"config": brief}, guard_max_s=most_s) as caches:
        a = caches[0]
        await a.get_or_load("config", "x", Source(x=None if kept == "absent" else 1).load, tenant_id="acme")

        async def is_over() -> bool:
            source = Source(x=1)
            source.error = ConnectionError("away")
            with contextlib.suppress(ConnectionError):
                await a.get_or_load("config", "x", source.load, tenant_id="acme")
            return source.calls > 0

        await until(is_over)
        sources = [Source(x=2) for _ in caches]
        for source in sources:
            source.hold()
        waiting = [reading(cache, source) for cache, source in zip(caches, sources, strict=True)]
        await until(lambda: any(source.calls for source in sources))
        await asyncio.gather(*(reading(cache, Source(y=1), "other") for cache in caches), return_exceptions=True)
        for source in sources:
            source.release()
        assert await asyncio.gather(*waiting) == [2] * 4
        assert sum(source.calls for source in sources) == 1


async def test_l2_that_goes_away_while_a_source_rests_is_gone_all_the_same(redis_url: str) -> None:
    safe = Policy(ttl_s=0.1, fail_safe_s=1000, retries=0)
    async with nodes(redis_url, 1, policies={"config": safe}, guard_max_s=60) as (a,):  # so that nothing stands in
        source = Source(x=1)
        await reading(a, source)
        source.error = ConnectionError("away")

        async def has_failed() -> bool:
            with contextlib.suppress(ConnectionError):
                await reading(a, source)
            return source.calls > 1

        await until(has_failed)
        store = parts(a).store
        asked: list[Any] = []

        async def once(_key: Any, _caller: Any, request: FillLeaseRequest) -> Any:
            asked.append(request.fallback)
            if len(asked) > 1:
                raise L2Unavailable("it has just gone")
            return FillLeaseReply(a_epoch, 1, FillLeaseOutcome.COOLING_DOWN, None, 1000)

        a_epoch = parts(a).node.shards[0].epoch
        with patch.object(store, "fill_lease", once):
            assert await reading(a, Source(x=2)) == 2
        assert len(asked) == 2


async def test_a_refresh_that_fails_is_not_tried_again_at_once() -> None:
    async with aging(2, soft=Policy(ttl_s=1000, soft_ttl_s=10, retries=0)) as world:
        source = Source(x=1)
        for cache in world.nodes:
            await reading(cache, source, "soft")
        await world.pass_s(11)
        source.error = RuntimeError("down")
        for _ in range(20):
            for cache in world.nodes:
                assert await reading(cache, source, "soft") == 1
                await until(lambda cache=cache: not len(parts(cache).loads.flights))
        assert source.calls == 2


@pytest.mark.parametrize("in_memory", [True, False])
async def test_a_ttl_of_the_calls_own_leaves_refreshing_in_force_with_and_without_l1(in_memory: bool) -> None:
    async with aging(1, soft=Policy(ttl_s=1000, soft_ttl_s=10, l1=in_memory)) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await reading(a, source, "soft", ttl=500)
        await world.pass_s(11)
        source.values["x"] = 2
        assert await reading(a, source, "soft", ttl=500) == 1

        async def fresh() -> bool:
            return bool(await reading(a, source, "soft", ttl=500) == 2)

        await until(fresh)
        assert source.calls == 2


async def test_not_found_never_is_the_fallback_for_a_failing_source() -> None:
    negative = Policy(negative_ttl_s=10, fail_safe_s=1000, retries=0)
    async with aging(2, negative=negative) as world:
        source = Source()
        assert await reading(world.nodes[0], source, "negative") is None
        await world.pass_s(11)
        source.error = RuntimeError("down")
        for cache in world.nodes:
            with pytest.raises(RuntimeError, match="down"):
                await reading(cache, source, "negative")


async def test_add_succeeds_over_a_cached_not_found(redis_url: str) -> None:
    async with nodes(redis_url, 2, policies={"negative": Policy(negative_ttl_s=60)}) as (a, b):
        assert await reading(a, Source(), "negative") is None
        assert await b.add("negative", "x", 1, tenant_id="acme") is True
        assert await a.add("negative", "x", 2, tenant_id="acme") is False
        assert await b.get("negative", "x", tenant_id="acme") == 1


async def test_a_node_that_is_cut_off_serves_no_expired_value_for_longer_than_any_other(redis_url: str) -> None:
    """Fail-safe is no way around D: neither at once, nor at the end of a load that has begun in time."""
    policy = Policy(ttl_s=0.2, fail_safe_s=1000, retries=0, fail_safe_throttle_s=0.05)
    async with nodes(redis_url, 2, policies={"safe": policy}, guard_max_s=0) as (a, b):  # else nothing stands in yet
        source = Source(x="old")
        assert await reading(b, source, "safe") == "old"
        await past(monotonic() + 0.3)
        parts(b).listening.heartbeat.cancel()
        parts(b).store._links.of(0).close()  # type: ignore[attr-defined]
        source.error = RuntimeError("down")
        with deaf(b):
            await a.invalidate("safe", "x", tenant_id="acme")
            invalidated_s = monotonic()
            source.hold()
            begun_in_time = reading(b, source, "safe")
            await past(invalidated_s + D_S)
            source.release()
            with pytest.raises(RuntimeError, match="down"):
                await begun_in_time
            with pytest.raises(RuntimeError, match="down"):
                await reading(b, source, "safe")
