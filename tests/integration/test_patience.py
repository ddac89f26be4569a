"""How long a load may take, who is served meanwhile, and when a source is asked again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import BaseModel, field_validator

from cachebus import LoadTimeout, Policy, get_with_cache_aside, lifespan
from cachebus.l2.names import ShardNames
from cachebus.reading.request import Loaded, Request
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.aging import aging
from tests.support.caches import PATIENCE_S, Source, key_of, nodes, parts, quick, rules_of, until
from tests.support.patience import SAFE, SOFT, expired, read, reading, settled
from tests.support.servers import any_binary

BRIEF = Policy(ttl_s=0.1, fail_safe_s=1000, retries=0, load_soft_timeout_s=0.05, load_timeout_s=30)


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """One of the test's own."""
    with EmbeddedServer(any_binary()) as embedded:
        yield embedded


# -- how many share it ----------------------------------------------------------------------------------------


async def test_callers_with_more_tags_than_a_record_carries_share_several_loads(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (a,):
        source = Source(x=1)
        source.hold()
        callers = [reading(a, source, tags=[f"user:{number}"]) for number in range(600)]
        await source.asked.wait()
        source.release()
        assert set(await asyncio.gather(*callers)) == {1}
        assert a.stats().types["config"].serialization_errors == 0
        assert await a.get("config", "x", tenant_id="acme") == 1


# -- loaders that heed no limit -------------------------------------------------------------------------------


async def test_whatever_a_loader_makes_of_the_limit_it_is_not_run_again(redis_url: str) -> None:
    async with nodes(redis_url, 2, policies={"config": Policy(load_timeout_s=0.1, retries=3)}) as (a, b):
        calls = 0

        async def load() -> Any:
            nonlocal calls
            calls += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ConnectionError("as a driver may say of its cancellation") from None

        with pytest.raises(LoadTimeout, match="longer than"):
            await a.get_or_load("config", "x", load, tenant_id="acme")
        assert calls == 1
        assert await read(b, Source(x=1)) == 1


async def test_what_nobody_waits_for_any_more_is_not_run_again(redis_url: str) -> None:
    async with nodes(redis_url, 1, policies={"config": Policy(retries=3, retry_backoff_s=0.001)}) as (a,):
        calls, asked = 0, asyncio.Event()

        async def load() -> Any:
            nonlocal calls
            calls += 1
            asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ConnectionError from None

        caller = asyncio.create_task(a.get_or_load("config", "x", load, tenant_id="acme"))
        await asked.wait()
        caller.cancel()
        await settled(a)
        assert calls == 1


async def test_generation_does_not_follow_a_database_that_was_cancelled(redis_url: str) -> None:
    async with lifespan(quick(redis_url)) as cache:
        asked, generated = asyncio.Event(), Source(x=1)

        async def fetch() -> Any:
            asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ValueError from None

        caller = asyncio.create_task(get_with_cache_aside("config", "x", "acme", fetch, generated.load))
        await asked.wait()
        caller.cancel()
        await settled(cache)
        assert generated.calls == 0


async def test_a_loader_that_never_ends_holds_no_lease_for_longer_than_a_load_may_take(redis_url: str) -> None:
    policies = {"config": Policy(load_timeout_s=0.2, retries=0)}
    async with nodes(redis_url, 2, policies=policies, lease_ms=100) as (a, b):
        ends, asked = asyncio.Event(), asyncio.Event()

        async def load(_: object) -> Loaded:  # what no limit is around
            asked.set()
            await ends.wait()
            return Loaded(1)

        request = Request(key_of(a, "config", "x", "acme"), load, rules_of(a, "config"))
        stuck = asyncio.create_task(parts(a).loads.get_or_load(request))
        await asked.wait()

        async def is_loaded() -> bool:
            with contextlib.suppress(LoadTimeout):
                return bool(await read(b, Source(x=2)) == 2)
            return False

        await until(is_loaded)
        ends.set()
        assert (await stuck).value == 1
        assert await b.get("config", "x", tenant_id="acme", use_memory=False) == 2, "it came too late to be kept"


# -- when a source is asked again -----------------------------------------------------------------------------


async def test_a_refresh_that_meets_another_nodes_says_nothing_of_the_source() -> None:
    async with aging(2, soft=SOFT) as world:
        a, b = world.nodes
        source = Source(x=1)
        assert [await read(cache, source, "soft") for cache in world.nodes] == [1, 1]
        await world.pass_s(11)
        source.hold()
        for cache in world.nodes:
            assert await read(cache, source, "soft") == 1
        await source.asked.wait()
        await until(lambda: len(parts(b).loads.background.pauses) + len(parts(a).loads.background.pauses))
        source.release()
        await settled(a, b)
        assert source.calls == 2
        source.values["x"] = 2
        await world.pass_s(101)
        assert await read(b, source, "soft") == 2
        assert await read(a, source, "soft") == 2
        assert sum(cache.stats().types["soft"].fallbacks for cache in world.nodes) == 0


async def test_what_another_node_has_loaded_since_ends_a_sources_rest(redis_url: str) -> None:
    policy = Policy(ttl_s=0.1, fail_safe_s=1000, retries=0, fail_safe_throttle_s=1000)
    async with (
        nodes(redis_url, 1, policies={"safe": policy}, guard_max_s=0) as (a,),
        nodes(redis_url, 1, policies={"safe": Policy(ttl_s=1000)}, guard_max_s=0) as (b,),
    ):
        source = Source(x=1)
        await read(a, source, "safe")
        await expired(a, "safe")
        source.error = RuntimeError("down")
        assert await read(a, source, "safe") == 1
        assert await read(b, Source(x=3), "safe") == 3, "it has nothing to serve instead"

        async def has_come() -> bool:
            return bool(await read(a, source, "safe") == 3)

        await until(has_come)
        assert source.calls == 2, "it was not asked again"


async def test_a_read_past_memory_gets_no_stand_in_out_of_memory() -> None:
    async with aging(2, safe=SAFE) as world:
        _, b = world.nodes
        source = Source(x=1)
        assert await read(b, source, "safe") == 1
        await world.pass_s(11)
        source.error = RuntimeError("down")
        assert await read(b, source, "safe") == 1
        await world.fleet.caches[0].invalidate("safe", "x", tenant_id="acme")
        with pytest.raises(RuntimeError, match="down"):
            await read(b, source, "safe", use_memory=False)


async def test_a_failure_of_long_ago_holds_nobody_up_and_serves_nothing_old() -> None:
    async with aging(1, safe=SAFE) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await read(a, source, "safe")
        await world.pass_s(11)
        source.error = RuntimeError("down")
        assert await read(a, source, "safe") == 1
        source.error, source.values["x"] = None, 2
        await world.pass_s(100)
        assert await read(a, source, "safe") == 2


async def test_a_search_that_finds_what_is_past_its_soft_expiry_refreshes_it() -> None:
    async with aging(1, soft=Policy(ttl_s=1000, soft_ttl_s=10, l1=False)) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await read(a, source, "soft", agent_id="a", search_hierarchy=True)
        await world.pass_s(11)
        source.values["x"] = 2
        assert await read(a, source, "soft", agent_id="a", search_hierarchy=True) == 1
        await settled(a)
        assert await read(a, source, "soft", agent_id="a", search_hierarchy=True) == 2


async def test_a_database_that_fails_behind_a_generation_that_works_is_counted(redis_url: str) -> None:
    async with lifespan(quick(redis_url, policies={"config": Policy(retries=0)})) as cache:
        source = Source()
        source.error = RuntimeError("down")
        value, metrics = await get_with_cache_aside("config", "x", "acme", source.load, lambda: 2)
        assert (value, metrics["source"]) == (2, "generation")
        assert cache.stats().types["config"].load_errors == 1


# -- who is served meanwhile ----------------------------------------------------------------------------------


async def test_while_another_node_loads_for_too_long_what_is_old_is_served(redis_url: str) -> None:
    slow = Policy(ttl_s=0.1, fail_safe_s=1000, retries=0, load_timeout_s=0.3)
    patient = Policy(ttl_s=0.1, fail_safe_s=1000, retries=0, load_timeout_s=30)
    async with (
        nodes(redis_url, 1, policies={"safe": patient}, guard_max_s=0) as (a,),
        nodes(redis_url, 1, policies={"safe": slow}, guard_max_s=0) as (b,),
    ):
        source = Source(x=1)
        assert [await read(cache, source, "safe") for cache in (a, b)] == [1, 1]
        await expired(b, "safe")
        source.hold()
        first = reading(a, source, "safe")
        await source.asked.wait()
        assert await read(b, source, "safe") == 1
        assert b.stats().types["safe"].fallbacks == 1
        source.release()
        await first


@pytest.mark.parametrize("how", ["without memory", "on another node", "by a search"])
async def test_what_is_old_in_l2_alone_is_served_while_its_source_is_slow(redis_url: str, how: str) -> None:
    policy = BRIEF.model_copy(update={"l1": how != "without memory"})
    async with nodes(redis_url, 2, policies={"safe": policy}, guard_max_s=0) as (a, b):
        source = Source(x=1)
        more: dict[str, Any] = {"agent_id": "a", "search_hierarchy": True} if how == "by a search" else {}
        await read(a, source, "safe", **more)
        await expired(a, "safe")
        source.hold()
        reader = b if how == "on another node" else a
        assert await until(lambda: read(reader, source, "safe", **more)) == 1
        source.release()


async def test_who_waits_for_another_node_is_given_what_l2_keeps(redis_url: str) -> None:
    patient = BRIEF.model_copy(update={"load_soft_timeout_s": None})
    async with (
        nodes(redis_url, 1, policies={"safe": patient}, guard_max_s=0) as (a,),
        nodes(redis_url, 1, policies={"safe": BRIEF}, guard_max_s=0) as (b,),
    ):
        source, others = Source(x=1), Source(x=2)
        await read(a, source, "safe")
        await expired(a, "safe")
        source.hold()
        first = reading(a, source, "safe")
        await source.asked.wait()
        async with asyncio.timeout(PATIENCE_S):
            assert await read(b, others, "safe") == 1
        assert others.calls == 0
        source.release()
        await first


async def test_a_source_that_hangs_after_it_has_failed_holds_no_reader_without_memory_either() -> None:
    async with aging(1, safe=SAFE.model_copy(update={"l1": False})) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await read(a, source, "safe")
        await world.pass_s(11)
        source.error = RuntimeError("down")
        assert await read(a, source, "safe") == 1
        await world.pass_s(14)
        source.hold()
        for _ in range(3):
            assert await read(a, source, "safe") == 1
        source.release()


async def test_that_a_search_found_nothing_leaves_what_may_stand_in_alone() -> None:
    async with aging(1, safe=SAFE) as world:
        (a,) = world.nodes
        source = Source(x=1)
        await read(a, source, "safe")
        await world.pass_s(11)
        assert await a.get("safe", "x", "acme", "an agent", search_hierarchy=True) is None
        world.fleet.away = True
        source.error = RuntimeError("down")
        assert await read(a, source, "safe") == 1


# -- what comes of it -----------------------------------------------------------------------------------------


class Fickle(BaseModel):
    """A model that takes a value so often, and no more often."""

    x: int
    decodings: int = 0

    @field_validator("x")
    @classmethod
    def _once(cls, x: int) -> int:
        global taken
        taken += 1
        if taken > 1:
            raise ValueError("once is enough")
        return x


taken = 0


async def test_what_another_node_has_loaded_is_decoded_once(redis_url: str) -> None:
    global taken
    async with nodes(redis_url, 1) as (a,), nodes(redis_url, 1, policies={"config": Policy(model=Fickle)}) as (b,):
        source = Source(x={"x": 1})
        source.hold()
        first = reading(a, source)
        await source.asked.wait()
        second = reading(b, source)
        await asyncio.gather(*(b.get("other", "x", tenant_id="acme") for _ in range(3)))
        taken = 0
        source.release()
        assert await first == {"x": 1}
        assert (await second).x == 1


async def test_an_outage_is_a_miss_also_where_a_get_is_asked_again(server: EmbeddedServer) -> None:
    async with nodes(server.url, 1, policies={"config": Policy(l1=False)}, on_outage="miss") as (a,):
        key = parts(a).naming.key("config", "x", "acme", None, None, None)
        server.command("RPUSH", ShardNames("cachebus", 0).record(key), "a list")
        assert await a.get("config", "x", tenant_id="acme", default="none") == "none"
        asked_again = parts(a).reader._fetch._read_by_script

        async def while_it_goes_away(*arguments: Any, **more: Any) -> Any:
            server.kill()
            return await asked_again(*arguments, **more)

        with patch.object(parts(a).reader._fetch, "_read_by_script", while_it_goes_away):
            assert await a.get("config", "x", tenant_id="acme", default="none") == "none"
        assert a.stats().l2_errors > 0
