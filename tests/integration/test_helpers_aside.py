"""`get_with_cache_aside`: cache, then database, then generation; and what its metrics say of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import ANY

import pytest

from cachebus import (
    Cache,
    CacheManager,
    Context,
    InvalidKey,
    LoadTimeout,
    NotSerializable,
    Policy,
    TenantRequired,
    get_with_cache_aside,
    lifespan,
)
from tests.support.caches import Source, asked, data_calls, nodes, quick, until

POLICIES = {
    "negative": Policy(negative_ttl_s=60),
    "retried": Policy(retries=2, retry_backoff_s=0.001),
    "brief": Policy(load_timeout_s=0.05, retries=0),
    "safe": Policy(ttl_s=0.05, fail_safe_s=60, retries=0),
}
KEYS = {
    "source",
    "level",
    "cache_hit",
    "cache_check_time_ms",
    "db_check_time_ms",
    "generation_time_ms",
    "total_time_ms",
    "latency_ms",
    "data_type",
    "resource_id",
    "serialization_error",
    "error",
}


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """The process-wide cache, open. No guard may have been lost with a former epoch: fallbacks count from the start."""
    async with lifespan(quick(redis_url, policies=POLICIES, guard_max_s=0)) as opened:
        yield opened


def gist(metrics: dict[str, Any]) -> tuple[Any, ...]:
    """Where it came from, at which level, and whether that was a hit."""
    return metrics["source"], metrics["level"], metrics["cache_hit"]


class Failing:
    """A source that fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.error = error or RuntimeError("down")

    async def __call__(self, resource_id: str) -> Any:
        """Fail."""
        self.calls += 1
        raise self.error


# -- where it comes from ---------------------------------------------------------------------------------


async def test_database_then_memory_then_l2(cache: Cache, redis_url: str) -> None:
    value, metrics = await get_with_cache_aside("config", "x", "acme", lambda resource_id: {"id": resource_id})
    assert value == {"id": "x"}
    assert gist(metrics) == ("database", None, False)
    assert set(metrics) == KEYS
    assert type(metrics) is dict
    assert (metrics["data_type"], metrics["resource_id"], metrics["error"]) == ("config", "x", None)
    assert metrics["serialization_error"] is False
    value, metrics = await get_with_cache_aside("config", "x", "acme", Failing())
    assert (value, gist(metrics)) == ({"id": "x"}, ("cache", "l1", True))
    assert set(metrics) == KEYS
    assert (metrics["data_type"], metrics["resource_id"]) == ("config", "x")
    async with nodes(redis_url, 1) as (other,):
        await other.set("config", "y", 2, tenant_id="acme")
    value, metrics = await get_with_cache_aside("config", "y", "acme", Failing())
    assert (value, gist(metrics)) == (2, ("cache", "l2", True))
    value, metrics = await get_with_cache_aside("config", "y", "acme")
    assert (value, gist(metrics)) == (2, ("cache", "l1", True))


async def test_metrics_are_each_callers_own(cache: Cache) -> None:
    _, first = await get_with_cache_aside("config", "x", "acme", lambda: 1)
    _, second = await get_with_cache_aside("config", "x", "acme", lambda: 1)
    first["source"] = second["source"] = "mine"
    _, third = await get_with_cache_aside("config", "x", "acme", lambda: 1)
    assert third["source"] == "cache"


async def test_generation_when_the_database_has_nothing(cache: Cache) -> None:
    calls: list[str] = []

    async def from_db(resource_id: str, tenant_id: str) -> None:
        calls.append(f"db {resource_id} {tenant_id}")
        await asyncio.sleep(0.01)

    async def generate(resource_id: str, tenant_id: str, ctx: Any) -> dict[str, Any]:
        calls.append(f"generate {resource_id} {tenant_id} {ctx.agent_id}")
        await asyncio.sleep(0.01)
        return {"made": True}

    with Context(tenant_id="acme", agent_id="a7"):
        value, metrics = await get_with_cache_aside("config", "x", "acme", from_db, generate)
    assert (value, gist(metrics)) == ({"made": True}, ("generation", None, False))
    assert calls == ["db x acme", "generate x acme a7"]
    assert metrics["db_check_time_ms"] >= 9
    assert metrics["generation_time_ms"] >= 9
    parts = metrics["cache_check_time_ms"] + metrics["db_check_time_ms"] + metrics["generation_time_ms"]
    assert metrics["total_time_ms"] == metrics["latency_ms"] == pytest.approx(parts)
    assert metrics["cache_check_time_ms"] >= 0
    assert await CacheManager.get("config", "x", "acme") == {"made": True}


async def test_generation_alone_and_nothing_at_all(cache: Cache) -> None:
    value, metrics = await get_with_cache_aside("config", "x", "acme", None, lambda: 1)
    assert (value, gist(metrics)) == (1, ("generation", None, False))
    value, metrics = await get_with_cache_aside("config", "y", "acme")
    assert (value, gist(metrics), metrics["error"]) == (None, ("not_found", None, False), None)


async def test_falsy_values_are_values(cache: Cache) -> None:
    source = Source(zero=0, no=False, text="", list=[])
    for resource_id, falsy in source.values.items():
        generate = Failing()
        value, metrics = await get_with_cache_aside("config", resource_id, "acme", source.load, generate)
        assert (value, metrics["source"], generate.calls) == (falsy, "database", 0)
        value, metrics = await get_with_cache_aside("config", resource_id, "acme", generate)
        assert (value, metrics["source"]) == (falsy, "cache")


async def test_not_found_is_kept_where_the_type_says_so(cache: Cache) -> None:
    source = Source()
    _, metrics = await get_with_cache_aside("negative", "x", "acme", source.load)
    assert gist(metrics) == ("not_found", None, False)
    for _ in range(2):
        value, metrics = await get_with_cache_aside("negative", "x", "acme", source.load)
        assert (value, metrics["source"], metrics["cache_hit"]) == (None, "not_found", True)
    assert source.calls == 1
    await get_with_cache_aside("config", "x", "acme", source.load)
    await get_with_cache_aside("config", "x", "acme", source.load)
    assert source.calls == 3


async def test_a_stand_in_is_called_stale(cache: Cache) -> None:
    await get_with_cache_aside("safe", "x", "acme", lambda: 1)

    async def expired() -> bool:
        return await CacheManager.get("safe", "x", "acme") is None

    await until(expired)
    failing = Failing()
    value, metrics = await get_with_cache_aside("safe", "x", "acme", failing)
    assert (value, gist(metrics), failing.calls) == (1, ("stale", None, False), 1)
    value, metrics = await get_with_cache_aside("safe", "x", "acme", failing, lambda: 2)
    assert (value, gist(metrics), failing.calls) == (1, ("stale", None, False), 1), "its source rests"


async def test_many_callers_share_one_load(cache: Cache) -> None:
    source = Source(x=1)
    source.hold()
    callers = [asyncio.create_task(get_with_cache_aside("config", "x", "acme", source.load)) for _ in range(20)]
    await source.asked.wait()
    source.release()
    found = await asyncio.gather(*callers)
    assert source.calls == 1
    assert all(value == 1 and metrics["source"] == "database" for value, metrics in found)


async def test_a_hit_costs_no_round_trip(cache: Cache) -> None:
    await get_with_cache_aside("config", "x", "acme", lambda: 1)
    await get_with_cache_aside("config", "x", "acme", lambda: 1, agent_id="a")
    with asked(cache) as counts:
        for _ in range(3):
            await get_with_cache_aside("config", "x", "acme", Failing())
            await get_with_cache_aside("config", "x", "acme", Failing(), agent_id="a")
    assert data_calls(counts) == 0


# -- errors ----------------------------------------------------------------------------------------------


async def test_a_database_that_fails_is_reported_and_never_kept_as_absent(cache: Cache) -> None:
    failing = Failing()
    for data_type in ("config", "negative"):
        value, metrics = await get_with_cache_aside(data_type, "x", "acme", failing)
        assert (value, gist(metrics)) == (None, ("error", None, False))
        assert metrics["error"] is failing.error
        value, metrics = await get_with_cache_aside(data_type, "x", "acme", lambda: 1)
        assert (value, metrics["source"], metrics["error"]) == (1, "database", None)
    assert cache.stats().types["config"].load_errors == 1


async def test_errors_are_raised_to_who_asks_for_that(cache: Cache) -> None:
    failing = Failing()
    with pytest.raises(RuntimeError) as caught:
        await get_with_cache_aside("config", "x", "acme", failing, raise_errors=True)
    assert caught.value is failing.error
    value, metrics = await get_with_cache_aside("config", "x", "acme", failing, lambda: 2, raise_errors=True)
    assert (value, metrics["source"], metrics["error"]) == (2, "generation", failing.error)
    await cache.set("config", "y", "no number", "acme")
    with pytest.raises(ValueError, match="invalid literal"):
        await get_with_cache_aside("config", "y", "acme", deserializer=int, raise_errors=True)
    assert await get_with_cache_aside("config", "z", "acme", lambda: None, raise_errors=True) == (None, ANY)


async def test_generation_is_still_tried_and_the_error_told(cache: Cache) -> None:
    failing = Failing()
    value, metrics = await get_with_cache_aside("config", "x", "acme", failing, lambda: 1)
    assert (value, gist(metrics)) == (1, ("generation", None, False))
    assert metrics["error"] is failing.error
    value, metrics = await get_with_cache_aside("config", "y", "acme", failing, lambda: None)
    assert (value, metrics["source"], metrics["error"]) == (None, "error", failing.error)
    other = Failing(ValueError("the generator"))
    value, metrics = await get_with_cache_aside("config", "y", "acme", failing, other)
    assert (value, metrics["source"], metrics["error"]) == (None, "error", other.error)


async def test_retries_come_before_generation(cache: Cache) -> None:
    failing = Failing(ConnectionError("x"))
    value, metrics = await get_with_cache_aside("retried", "x", "acme", failing, lambda: 1)
    assert (value, metrics["source"], failing.calls) == (1, "generation", 3)


async def test_a_load_that_takes_too_long_is_an_error(cache: Cache) -> None:
    async def endless() -> None:
        await asyncio.Event().wait()

    value, metrics = await get_with_cache_aside("brief", "x", "acme", endless)
    assert (value, metrics["source"]) == (None, "error")
    assert isinstance(metrics["error"], LoadTimeout)


@pytest.mark.parametrize("error", [InvalidKey("its own"), TenantRequired("x"), NotSerializable("x"), KeyError("x")])
async def test_what_a_loader_raises_is_reported_whatever_its_class(cache: Cache, error: Exception) -> None:
    value, metrics = await get_with_cache_aside("config", "x", "acme", Failing(error))
    assert (value, metrics["source"], metrics["error"]) == (None, "error", error)


async def test_a_caller_of_get_or_load_that_joins_gets_the_sources_own_error(cache: Cache) -> None:
    gate, began = asyncio.Event(), asyncio.Event()

    async def fails() -> None:
        began.set()
        await gate.wait()
        raise RuntimeError("down")

    aside = asyncio.create_task(get_with_cache_aside("config", "x", "acme", fails))
    await began.wait()
    joined = asyncio.create_task(cache.get_or_load("config", "x", lambda: 1, tenant_id="acme"))
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(RuntimeError, match="down"):
        await joined
    assert (await aside)[1]["source"] == "error"


async def test_a_caller_that_joins_a_get_or_load_is_told_database(cache: Cache) -> None:
    source = Source(x=1)
    source.hold()
    loading = asyncio.create_task(cache.get_or_load("config", "x", source.load, tenant_id="acme"))
    await source.asked.wait()
    aside = asyncio.create_task(get_with_cache_aside("config", "x", "acme", source.load))
    await asyncio.sleep(0)
    source.release()
    assert await loading == 1
    value, metrics = await aside
    assert (value, gist(metrics)) == (1, ("database", None, False))


async def test_bad_input_raises(cache: Cache) -> None:
    source = Source(x=1)
    for _ in range(2):
        with pytest.raises(TenantRequired):
            await get_with_cache_aside("config", "x", None, source.load)
        with pytest.raises(InvalidKey):
            await get_with_cache_aside("config", "x", "", source.load)
        with pytest.raises(InvalidKey):
            await get_with_cache_aside("config", "x", "acme", source.load, agent_id="")
        with pytest.raises(ValueError, match="ttl"):
            await get_with_cache_aside("config", "y", "acme", source.load, ttl=0)
        await CacheManager.set("config", "x", 1, "acme")
    assert source.calls == 0


async def test_a_cancelled_caller_is_cancelled(cache: Cache) -> None:
    source = Source(x=1)
    source.hold()
    caller = asyncio.create_task(get_with_cache_aside("config", "x", "acme", source.load))
    await source.asked.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await until(lambda: not cache.stats().flights)


# -- serializers -----------------------------------------------------------------------------------------


class Thing:
    """What msgpack knows nothing of."""

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def dump(thing: Thing) -> str:
        """As text."""
        return json.dumps({"name": thing.name})

    @staticmethod
    def load(text: str) -> Thing:
        """From text."""
        return Thing(json.loads(text)["name"])


async def test_a_serializer_and_a_deserializer(cache: Cache) -> None:
    for source in ("database", "cache", "cache"):
        value, metrics = await get_with_cache_aside(
            "config", "x", "acme", lambda: Thing("pen"), serializer=Thing.dump, deserializer=Thing.load
        )
        assert isinstance(value, Thing)
        assert (value.name, metrics["source"], metrics["error"]) == ("pen", source, None)
    assert await CacheManager.get("config", "x", "acme") == '{"name": "pen"}'
    assert metrics["level"] == "l1"


async def test_what_cannot_be_encoded_is_returned_and_counted(cache: Cache) -> None:
    for _ in range(2):
        value, metrics = await get_with_cache_aside("config", "x", "acme", lambda: Thing("pen"))
        assert value.name == "pen"
        assert gist(metrics) == ("database", None, False)
        assert metrics["serialization_error"] is True
    assert cache.stats().types["config"].serialization_errors == 2


async def test_a_serializer_that_fails_costs_only_the_caching(cache: Cache) -> None:
    def broken(value: Any) -> Any:
        raise TypeError("no way")

    for _ in range(2):
        value, metrics = await get_with_cache_aside(
            "config", "x", "acme", lambda: Thing("pen"), serializer=broken, deserializer=Thing.load
        )
        assert value.name == "pen"
        assert gist(metrics) == ("database", None, False)
        assert metrics["serialization_error"] is True
    assert await CacheManager.get("config", "x", "acme") is None
    counts = cache.stats().types["config"]
    assert (counts.serialization_errors, counts.load_errors) == (2, 0)


async def test_a_deserializer_that_fails_is_an_error(cache: Cache) -> None:
    await CacheManager.set("config", "x", "no json", "acme")
    value, metrics = await get_with_cache_aside("config", "x", "acme", deserializer=Thing.load)
    assert (value, metrics["source"]) == (None, "error")
    assert isinstance(metrics["error"], ValueError)


# -- contexts --------------------------------------------------------------------------------------------


async def test_with_context_ids_the_wider_contexts_are_searched(cache: Cache) -> None:
    await CacheManager.set("config", "x", "wide", "acme")
    failing = Failing()
    value, metrics = await get_with_cache_aside(
        "config", "x", "acme", failing, agent_id="a", conversation_id="v", collection_id="c"
    )
    assert (value, metrics["source"], metrics["cache_hit"], failing.calls) == ("wide", "cache", True, 0)
    assert await CacheManager.get("config", "x", "acme", "a", "v", "c") is None
    with asked(cache) as counts:
        value, metrics = await get_with_cache_aside(
            "config", "x", "acme", failing, agent_id="a", conversation_id="v", collection_id="c"
        )
    assert (value, metrics["level"]) == ("wide", "l1")
    assert data_calls(counts) == 0


async def test_a_load_with_context_ids_fills_that_very_context(cache: Cache) -> None:
    value, metrics = await get_with_cache_aside("config", "x", "acme", lambda: "narrow", agent_id="a")
    assert (value, metrics["source"]) == ("narrow", "database")
    assert await CacheManager.get("config", "x", "acme") is None
    assert await CacheManager.get("config", "x", "acme", "a") == "narrow"


async def test_the_tenant_of_ctx_or_of_the_surrounding_context(cache: Cache) -> None:
    ctx = Context(tenant_id="acme", agent_id="a7")

    async def load(resource_id: str, tenant_id: str, ctx: Context) -> str:
        return f"{resource_id} {tenant_id} {ctx.agent_id}"

    value, metrics = await get_with_cache_aside("config", "x", None, load, ctx=ctx)
    assert (value, metrics["source"]) == ("x acme a7", "database")
    assert ctx.metrics["cache_hit"] is False
    with ctx:
        value, metrics = await get_with_cache_aside("config", "x", fetch_from_db_func=load)
        assert (value, metrics["source"]) == ("x acme a7", "cache")
    assert ctx.metrics["cache_hit"] is True
    assert await CacheManager.get("config", "x", "acme") == "x acme a7"
    value, _ = await get_with_cache_aside("config", "x", "other", load, ctx=ctx)
    assert value == "x other a7"


async def test_a_ttl_of_its_own(cache: Cache) -> None:
    await get_with_cache_aside("config", "x", "acme", lambda: 1, ttl=0.05)

    async def expired() -> bool:
        return await CacheManager.get("config", "x", "acme") is None

    await until(expired)


async def test_generation_follows_a_database_that_was_cancelled_from_within(redis_url: str) -> None:
    async with lifespan(quick(redis_url, policies={"config": Policy(retries=0)})):

        async def fetch() -> Any:
            raise asyncio.CancelledError

        value, metrics = await get_with_cache_aside("config", "x", "acme", fetch, lambda: "made")
        assert (value, metrics["source"]) == ("made", "generation")
        assert isinstance(metrics["error"], LoadTimeout)


async def test_a_hit_in_memory_is_noted_in_the_context(redis_url: str) -> None:
    async with lifespan(quick(redis_url)):
        for expected in (False, True, True):
            ctx = Context(tenant_id="acme")
            await get_with_cache_aside("config", "x", None, lambda: "v", ctx=ctx)
            assert ctx.metrics["cache_hit"] is expected
