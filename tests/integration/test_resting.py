"""What a source that hangs, or has failed, costs whom: readers, nodes, and those who only look."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest

from cachebus import Cache, CacheManager, LoadTimeout, Policy, get_with_cache_aside, lifespan
from cachebus.core.details import details
from cachebus.core.ports import FillLeaseOutcome, FillLeaseReply
from cachebus.reading.request import Loaded, Request
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.aging import aging
from tests.support.caches import PATIENCE_S, Source, asked, key_of, nodes, parts, quick, rules_of, until
from tests.support.logs import told
from tests.support.patience import SAFE, SOFT, expired, read, reading, settled
from tests.support.resting import SHORT
from tests.support.servers import any_binary

# -- loaders that heed no limit -------------------------------------------------------------------------------


async def test_who_waits_for_a_loader_that_swallows_its_cancellation_is_told_of_the_limit(redis_url: str) -> None:
    ends = asyncio.Event()

    async def load() -> int:
        while not ends.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await ends.wait()
        return 1

    before = asyncio.all_tasks()
    with told("WARNING") as lines:
        try:
            async with nodes(redis_url, 2, policies={"config": Policy(load_timeout_s=0.1, retries=3)}) as (a, b):
                async with asyncio.timeout(PATIENCE_S):
                    with pytest.raises(LoadTimeout, match=r"longer than 0\.1 s"):
                        await a.get_or_load("config", "x", load, tenant_id="acme")
                assert not ends.is_set()
                assert await read(b, Source(x=2)) == 2
                assert a.stats().flights == 0
                assert await read(a, Source(x=3)) == 2, "its lease was given back"
        finally:
            ends.set()
    assert any("left behind" in line for line in lines)
    await until(lambda: asyncio.all_tasks() <= before)


async def test_a_loader_that_takes_its_cancellation_back_is_not_run_again(redis_url: str) -> None:
    async with nodes(redis_url, 1, policies={"config": Policy(load_timeout_s=0.1, retries=3)}) as (a,):
        calls = 0

        async def load() -> Any:
            nonlocal calls
            calls += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
                raise ConnectionError from None

        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(LoadTimeout, match="longer than"):
                await a.get_or_load("config", "x", load, tenant_id="acme")
        assert calls == 1


async def test_what_a_loader_gives_behind_its_limit_is_given_to_nobody(redis_url: str) -> None:
    async with nodes(redis_url, 1, policies={"config": Policy(load_timeout_s=0.1, retries=0)}) as (a,):

        async def load() -> Any:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return 1

        with pytest.raises(LoadTimeout, match="longer than"):
            await a.get_or_load("config", "x", load, tenant_id="acme")
        assert await a.get("config", "x", tenant_id="acme") is None


async def test_cache_aside_without_functions_waits_for_another_nodes_load(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (a,), lifespan(quick(redis_url)) as cache:
        source = Source(x=1)
        source.hold()
        first = reading(a, source)
        await source.asked.wait()
        second = asyncio.create_task(get_with_cache_aside("config", "x", "acme"))
        with asked(cache) as counts:
            await until(lambda: counts["fill_lease"] > 3)
        source.release()
        assert await first == 1
        assert (await second)[0] == 1


async def test_each_function_that_fails_is_counted(redis_url: str) -> None:
    async with lifespan(quick(redis_url, policies={"config": Policy(retries=0)})) as cache:
        source = Source()
        source.error = RuntimeError("down")
        _, metrics = await get_with_cache_aside("config", "x", "acme", source.load, source.load)
        assert metrics["source"] == "error"
        assert cache.stats().types["config"].load_errors == 2


# -- sources that hang after they have failed ---------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
async def test_a_source_that_hangs_holds_no_reader_however_long_it_does(in_memory: bool) -> None:
    async with aging(1, safe=SAFE.model_copy(update={"l1": in_memory})) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await read(a, source, "safe")
        await world.pass_s(11)
        source.error = RuntimeError("down")
        assert await read(a, source, "safe") == 1
        await world.pass_s(14)
        source.hold()
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(5):
                assert await read(a, source, "safe") == 1
                await world.pass_s(10)
        assert source.calls == 3
        source.release()
        await settled(a)


async def test_who_hears_of_a_rest_at_its_very_end_heeds_it_for_as_long_as_others() -> None:
    async with aging(2, safe=SAFE.model_copy(update={"l1": False})) as world:
        a, b = world.nodes
        source = Source(x=1)
        await read(a, source, "safe")
        await world.pass_s(11)
        source.error = RuntimeError("down")
        assert await read(a, source, "safe") == 1
        shard = world.fleet.world.shards[0]
        (lease,) = shard.fill_leases.values()
        await world.pass_s(lease.until_s - shard.clock() - 0.01)
        assert await read(b, source, "safe") == 1
        assert source.calls == 2
        source.hold()
        await world.pass_s(5)
        async with asyncio.timeout(PATIENCE_S):
            assert await read(b, source, "safe") == 1
        assert source.calls == 3
        source.release()
        await settled(b)


async def test_who_has_waited_in_vain_for_another_node_lets_the_next_wait_no_longer(redis_url: str) -> None:
    slow = Policy(ttl_s=0.1, fail_safe_s=1000, retries=0, load_timeout_s=0.2, fail_safe_throttle_s=1000)
    async with (
        nodes(redis_url, 1, policies={"safe": Policy(ttl_s=0.1, fail_safe_s=1000)}, guard_max_s=0) as (a,),
        nodes(redis_url, 1, policies={"safe": slow}, guard_max_s=0) as (b,),
    ):
        source = Source(x=1)
        assert [await read(cache, source, "safe") for cache in (a, b)] == [1, 1]
        await expired(b, "safe")
        source.hold()
        first = reading(a, source, "safe")
        await source.asked.wait()
        assert await read(b, source, "safe") == 1
        with asked(b) as counts:
            assert [await read(b, source, "safe") for _ in range(10)] == [1] * 10
            assert counts["fill_lease"] == 0
        source.release()
        await first


async def test_a_stand_in_that_comes_after_the_soft_limit_is_used(redis_url: str) -> None:
    """L2 is slower than the type's patience, and alone has it."""
    policy = Policy(ttl_s=0.1, l1=False, fail_safe_s=1000, retries=0, load_soft_timeout_s=0.01, load_timeout_s=1000)
    async with nodes(redis_url, 1, policies={"safe": policy}, guard_max_s=0) as (a,):
        source = Source(x=1)
        await read(a, source, "safe")
        await expired(a, "safe")
        source.hold()
        lease, slept = parts(a).store.fill_lease, asyncio.Event()

        async def slowly(*arguments: Any, **more: Any) -> FillLeaseReply:
            await slept.wait()
            return await lease(*arguments, **more)

        with patch.object(parts(a).store, "fill_lease", slowly):
            asyncio.get_running_loop().call_later(0.1, slept.set)
            async with asyncio.timeout(PATIENCE_S):
                assert await read(a, source, "safe") == 1
        source.release()


# -- when a rest ends -----------------------------------------------------------------------------------------


async def failed(world: Any, cache: Cache, source: Source) -> None:
    """The source has failed the cache, which serves what has expired."""
    await read(cache, source, "safe")
    await world.pass_s(11)
    source.error = RuntimeError("down")
    assert await read(cache, source, "safe") == 1
    source.error, source.values["x"] = None, 2


async def test_where_a_rest_is_over_l2_is_looked_into_first() -> None:
    async with aging(2, safe=SAFE) as world:
        a, b = world.nodes
        source = Source(x=1)
        await failed(world, a, source)
        b.register(policies={"safe": Policy(ttl_s=1000)})  # it has nothing to serve instead, so it loads
        assert await read(b, source, "safe") == 2
        await world.pass_s(14)
        assert await read(a, source, "safe") == 2
        assert source.calls == 3


@pytest.mark.parametrize("how", ["get", "set", "load"])
async def test_a_newer_value_ends_a_rest_by_whatever_way_it_came(how: str) -> None:
    safe = SAFE.model_copy(update={"fail_safe_throttle_s": 1000.0})
    async with aging(2, safe=safe) as world:
        a, b = world.nodes
        source = Source(x=1)
        await failed(world, a, source)
        b.register(policies={"safe": Policy(ttl_s=5)})
        if how == "set":
            await a.set("safe", "x", 2, tenant_id="acme", ttl=5)
        else:
            assert await read(b, source, "safe") == 2
            if how == "get":
                assert await a.get("safe", "x", tenant_id="acme") == 2
            else:
                assert await read(a, source, "safe", use_memory=False) == 2
        await world.pass_s(6)
        source.values["x"] = 3
        assert await read(a, source, "safe") == 3
        assert a.stats().types["safe"].fallbacks == 1


# -- refreshes that bring nothing -----------------------------------------------------------------------------


def _iterator() -> Any:
    return iter([1])


async def _itself_cancelled() -> Any:
    raise asyncio.CancelledError


@pytest.mark.parametrize("gives", [_iterator, _itself_cancelled])
async def test_a_refresh_that_stores_nothing_is_tried_by_one_node_in_a_while(gives: Callable[[], Any]) -> None:
    async with aging(3, soft=SOFT) as world:
        source, calls = Source(x=1), 0

        async def load() -> Any:
            nonlocal calls
            calls += 1
            result = gives()
            return await result if asyncio.iscoroutine(result) else result

        for cache in world.nodes:
            assert await read(cache, source, "soft") == 1
        await world.pass_s(11)
        for expected in (1, 2):
            for _ in range(10):
                for cache in world.nodes:
                    assert await cache.get_or_load("soft", "x", load, tenant_id="acme") == 1
                    await settled(cache)
            assert calls == expected
            await world.pass_s(14)


async def test_a_refresh_that_stores_nothing_says_nothing_against_the_source() -> None:
    """What has expired meanwhile is loaded, and nothing stands in."""
    async with aging(2, soft=Policy(ttl_s=12, soft_ttl_s=10, fail_safe_s=1000, retries=0)) as world:
        source = Source(x=1)
        for cache in world.nodes:
            assert await read(cache, source, "soft") == 1
        await world.pass_s(11)
        source.values["x"] = None
        assert await read(world.nodes[0], source, "soft") == 1
        await settled(world.nodes[0])
        assert source.calls == 2
        source.values["x"] = 2
        await world.pass_s(2)
        for cache in world.nodes:
            assert await read(cache, source, "soft") == 2


async def test_without_l2_not_every_read_begins_a_refresh() -> None:
    async with aging(1, soft=SOFT) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await read(a, source, "soft")
        await world.pass_s(11)
        world.fleet.away = True
        with asked(a) as counts:
            for _ in range(10):
                assert await read(a, source, "soft") == 1
                await settled(a)
            assert counts["get"] == 1


# -- what is kept, and what is asked for ----------------------------------------------------------------------


async def test_who_waits_is_given_what_l2_keeps_once_whether_or_not_it_is_of_use(redis_url: str) -> None:
    """It may be large, and is asked for many times a second."""
    slow = Policy(ttl_s=0.1, fail_safe_s=1000, retries=0)
    for guard_max_s in (0.0, 60.0):  # after which it is in doubt
        async with nodes(
            redis_url, 2, policies={"safe": slow}, guard_max_s=guard_max_s, namespace=f"n{guard_max_s}"
        ) as (a, b):
            source = Source(x=1)
            await read(a, source, "safe")
            await expired(a, "safe")
            source.hold()
            first = reading(a, source, "safe")
            await source.asked.wait()
            lease, replies = parts(b).store.fill_lease, []

            async def noted(*arguments: Any, lease: Any = lease, replies: list[Any] = replies, **more: Any) -> Any:
                reply = await lease(*arguments, **more)
                replies.append(reply)
                return reply

            with patch.object(parts(b).store, "fill_lease", noted):
                second = reading(b, source, "safe")
                await until(lambda replies=replies: len(replies) > 3)
            source.release()
            assert [await first, await second] == [1, 1]
            waits = [reply for reply in replies if reply.outcome is FillLeaseOutcome.WAIT]
            assert sum(bool(reply.record) for reply in waits) == 1


async def test_that_a_search_found_nothing_without_a_lease_leaves_what_may_stand_in_alone() -> None:
    async with aging(1, safe=SAFE) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await read(a, source, "safe")
        world.clock.advance(11)  # its lease has lapsed, and L2 answers
        assert await a.get("safe", "x", "acme", "an agent", search_hierarchy=True) is None
        await world.fleet.probe()
        world.fleet.away = True
        source.error = RuntimeError("down")
        assert await read(a, source, "safe") == 1


# -- loads that are joined ------------------------------------------------------------------------------------


async def test_without_l2_a_load_heeds_what_all_have_asked_for_who_share_the_one_that_joins_it() -> None:
    async with aging(1) as world:
        (a,) = world.nodes
        loads, key, tag = parts(a).loads, key_of(a, "config", "x", "acme"), "T\x1facme\x1ft"
        asked_for, ends = asyncio.Event(), asyncio.Event()

        async def load(_: object) -> Loaded:
            asked_for.set()
            await ends.wait()
            return Loaded(1)

        request = Request(key, load, rules_of(a, "config"))
        world.fleet.away = True
        first = asyncio.create_task(loads.get_or_load(request))
        await asked_for.wait()
        flight = loads._begin(request, None)  # by who could not join while the first still asked L2
        flight.heed([tag], 5.0)
        second = asyncio.create_task(flight.wait())
        await until(lambda: flight._wishes.are_fixed)
        assert not flight.joinable(request._replace(tags=["another"])), "it would be heeded by nobody"
        ends.set()
        assert [(await first).value, (await second).value] == [1, 1]
        entry = parts(a).node.l1.entries[key.l1]
        extra = details(entry)
        assert extra is not None
        assert list(extra.tags) == [tag]


async def test_a_reader_past_memory_is_given_nothing_out_of_memory_by_a_load_that_it_joins() -> None:
    policy = SAFE.model_copy(update={"load_soft_timeout_s": 0.01})
    async with aging(1, safe=policy) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await read(a, source, "safe")
        await world.pass_s(11)
        source.values["x"] = 2
        source.hold()
        world.fleet.away = True
        assert await read(a, source, "safe") == 1
        past_memory = reading(a, source, "safe", use_memory=False)
        assert await read(a, source, "safe") == 1, "who is patient for as long"
        assert not past_memory.done()
        source.release()
        assert await past_memory == 2


# -- a source that says that there is nothing ------------------------------------------------------------------


@pytest.mark.parametrize("negative_ttl_s", [None, 0.1])
async def test_what_the_source_has_no_more_is_a_fallback_no_more(redis_url: str, negative_ttl_s: float | None) -> None:
    """On no node, also where "not found" is not cached."""
    policy = SHORT.model_copy(update={"negative_ttl_s": negative_ttl_s})
    async with nodes(redis_url, 2, policies={"safe": policy}, guard_max_s=0) as (a, b):
        source = Source(x="alice")
        assert [await read(cache, source, "safe") for cache in (a, b)] == ["alice", "alice"]
        await expired(a, "safe")
        await expired(b, "safe")
        del source.values["x"]
        assert await read(a, source, "safe") is None
        source.error = ValueError("away")
        for cache in (a, b):

            async def fails(cache: Cache = cache) -> bool:
                try:
                    given = await read(cache, source, "safe")
                except ValueError:
                    return True
                assert given is None
                return False

            await until(fails)


async def test_what_the_source_has_no_more_is_no_fallback_where_l2_is_away(redis_url: str) -> None:
    with EmbeddedServer(any_binary()) as server:
        async with nodes(server.url, 1, policies={"safe": SHORT}, guard_max_s=0, l2_timeout_s=0.2) as (a,):
            source = Source(x="alice")
            assert await read(a, source, "safe") == "alice"
            await expired(a, "safe")
            server.pause()
            del source.values["x"]
            assert await read(a, source, "safe") is None
            source.error = ValueError("away")
            with pytest.raises(ValueError, match="away"):
                await read(a, source, "safe")


async def test_a_refresh_that_finds_nothing_takes_the_value_away(redis_url: str) -> None:
    async with nodes(redis_url, 2, policies={"soft": Policy(soft_ttl_s=0.05, retries=0)}) as (a, b):
        source = Source(x="alice")
        assert [await read(cache, source, "soft") for cache in (a, b)] == ["alice", "alice"]
        del source.values["x"]

        async def is_gone() -> bool:
            return await read(a, source, "soft") is None

        await until(is_gone)
        assert await a.get("soft", "x", tenant_id="acme", use_memory=False) is None


@pytest.mark.parametrize("gives", [object(), b"x" * 2000], ids=["what can't be encoded", "too much"])
async def test_a_value_does_not_stay_whose_successor_cant_be_cached(redis_url: str, gives: object) -> None:
    soft = Policy(soft_ttl_s=0.05, retries=0, max_value_bytes=1000)
    async with nodes(redis_url, 2, policies={"soft": soft}) as (a, b):
        source = Source(x=1)
        assert [await read(cache, source, "soft") for cache in (a, b)] == [1, 1]
        source.values["x"] = gives

        async def is_new() -> bool:
            return await read(a, source, "soft") is gives

        await until(is_new)
        assert await a.get("soft", "x", tenant_id="acme", use_memory=False) is None


async def test_a_refresh_keeps_the_tags_of_what_it_replaces(redis_url: str) -> None:
    """Who asks for it has named none: on a hit they would be ignored."""
    async with nodes(redis_url, 2, policies={"soft": Policy(soft_ttl_s=0.05, retries=0)}) as (a, b):
        source = Source(x=1)
        assert await read(a, source, "soft", tags=["plan"]) == 1
        source.values["x"] = 2

        async def is_new() -> bool:
            return await read(b, source, "soft") == 2

        await until(is_new)
        await settled(a, b)
        await a.invalidate_tags(["plan"], tenant_id="acme")
        assert await a.get("soft", "x", tenant_id="acme") is None


async def test_those_who_share_a_failed_load_share_no_error(redis_url: str) -> None:
    async with nodes(redis_url, 1, policies={"config": Policy(retries=0)}) as (a,):
        source = Source()
        source.error = RuntimeError("down")
        source.error.add_note("of the source")
        source.hold()

        async def request(name: str) -> Exception:
            try:
                raise KeyError(name)
            except KeyError:
                try:
                    await read(a, source)
                except RuntimeError as error:
                    error.add_note(name)
                    return error
            raise AssertionError("it has not failed")

        requests = [asyncio.create_task(request(name)) for name in "abc"]
        await source.asked.wait()
        await asyncio.sleep(0)
        source.release()
        errors = await asyncio.gather(*requests)
        assert len({id(error) for error in errors}) == 3
        assert [error.__notes__ for error in errors] == [["of the source", name] for name in "abc"]
        assert {(type(error), error.args) for error in errors} == {(RuntimeError, ("down",))}
        assert source.calls == 1


# -- what is generated in the place of a database ------------------------------------------------------------------


async def test_what_is_generated_takes_the_place_of_no_good_value(redis_url: str) -> None:
    policies = {"soft": Policy(soft_ttl_s=0.05, retries=0), "safe": SHORT}
    async with lifespan(quick(redis_url, policies=policies, guard_max_s=0)) as cache:
        for data_type, served in (("soft", "cache"), ("safe", "stale")):
            database, generated = Source(x="good"), Source(x="default")

            async def ask(data_type: str = data_type, a: Source = database, b: Source = generated) -> tuple[Any, Any]:
                value, metrics = await get_with_cache_aside(data_type, "x", "acme", a.load, b.load)
                return value, metrics["source"]

            assert await ask() == ("good", "database")
            database.error = ConnectionError()
            database.asked.clear()
            if data_type == "safe":
                await expired(cache, "safe")

            async def has_failed(database: Source = database, ask: Any = ask, served: str = served) -> bool:
                given = await ask()
                assert given in {("good", "cache"), ("good", served)}
                return database.asked.is_set()

            await until(has_failed)
            await settled(cache)
            assert (await ask())[0] == "good"
            assert generated.calls == 0


async def test_what_is_generated_for_an_error_is_kept_no_longer_than_the_source_rests() -> None:
    async with aging(1, safe=Policy(ttl_s=1000, fail_safe_throttle_s=5, retries=0)) as world:
        (a,) = world.nodes
        database, generated = Source(x="good"), Source(x="default")
        database.error = ConnectionError()
        with patch.object(CacheManager, "_cache", a):
            for expected in ("default", "default"):
                value, _ = await get_with_cache_aside("safe", "x", "acme", database.load, generated.load)
                assert value == expected
            assert (database.calls, generated.calls) == (1, 1)
            database.error = None
            await world.pass_s(6)
            value, _ = await get_with_cache_aside("safe", "x", "acme", database.load, generated.load)
            assert value == "good"


@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_source_says_as_its_last_caller_leaves_is_heard(redis_url: str, fails: bool) -> None:
    """To forget it would have the source asked again at once."""
    async with nodes(redis_url, 2, policies={"safe": SHORT.model_copy(update={"ttl_s": 1.0})}, guard_max_s=0) as (a, b):
        source, calls = Source(x=1), 0
        await read(a, source, "safe")
        await expired(a, "safe")

        async def load() -> int:
            nonlocal calls
            calls += 1
            caller.cancel()
            if fails:
                raise ConnectionError
            return 2

        caller = asyncio.create_task(a.get_or_load("safe", "x", load, tenant_id="acme"))
        with pytest.raises(asyncio.CancelledError):
            await caller
        await settled(a)
        source.values["x"] = 3
        assert await read(b, source, "safe") == (1 if fails else 2)
        assert (calls, source.calls) == (1, 1)
