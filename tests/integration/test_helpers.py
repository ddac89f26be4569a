"""Coordinated invalidation, counters, hashing, serialization, the decorator: as existing services call them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cachebus import (
    Cache,
    CacheManager,
    Cascade,
    ConfigError,
    Context,
    InvalidKey,
    L2Unavailable,
    NotSerializable,
    Policy,
    TenantRequired,
    cached,
    deserialize_from_cache,
    generate_resource_id_hash,
    get_counter,
    increment_counter,
    invalidate_coordinated,
    invalidate_resource_cache,
    lifespan,
    serialize_for_cache,
    track_cache_metrics,
)
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, quick, until

ROOT = Path(__file__).parents[2]
POLICIES = {"f32": Policy(codec="f32"), "squeezed": Policy(compress_over_bytes=100)}


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """The process-wide cache, open."""
    async with lifespan(quick(redis_url, policies=POLICIES)) as opened:
        yield opened


# -- invalidation ----------------------------------------------------------------------------------------


async def test_coordinated_invalidation_counts_its_targets_and_gives_a_receipt(cache: Cache, redis_url: str) -> None:
    async with nodes(redis_url, 1) as (other,):
        for data_type, resource_id in (("document", "7"), ("embedding", "doc:7"), ("query_result", "q"), ("page", "7")):
            await CacheManager.set(data_type, resource_id, 1, "acme")
            assert await other.get(data_type, resource_id, tenant_id="acme") == 1
        events = other.stats().events_applied
        counts = await invalidate_coordinated(
            "acme",
            "document",
            "7",
            related_invalidations=[
                {"data_type": "embedding", "resource_id": "doc:7"},
                {"data_type": "embedding", "resource_id": "doc:8"},
                {"data_type": "query_result", "resource_id": "*"},
            ],
        )
        assert counts == {"document": 1, "embedding": 2, "query_result": 1}
        assert isinstance(counts, dict)
        for data_type, resource_id in (("document", "7"), ("embedding", "doc:7"), ("query_result", "q")):
            assert await CacheManager.get(data_type, resource_id, "acme") is None
            assert await other.get(data_type, resource_id, tenant_id="acme", after=counts.receipt) is None
        assert await other.get("page", "7", tenant_id="acme") == 1
        await until(lambda: other.stats().shards[0].applied >= counts.receipt.seq)
        assert other.stats().events_applied == events + 1  # one step


async def test_both_wait_for_the_nodes_when_asked_to(cache: Cache) -> None:
    me = cache.stats().node
    assert (await invalidate_coordinated("acme", "config", "x", wait="nodes")).receipt.confirmed == (me,)
    assert await invalidate_resource_cache("config", "x", "acme", wait="nodes") is True
    with pytest.raises(ValueError, match="wait"):
        await invalidate_resource_cache("config", "x", "acme", wait="everybody")


async def test_related_invalidations_inherit_the_contexts_of_the_call(cache: Cache) -> None:
    for agent in (None, "a", "b"):
        for data_type in ("config", "view", "list"):
            await CacheManager.set(data_type, "x", 1, "acme", agent)
    counts = await invalidate_coordinated(
        "acme",
        "config",
        "x",
        [
            {"data_type": "view", "resource_id": "x"},
            {"data_type": "list", "resource_id": "*"},
            {"data_type": "list", "resource_id": "x", "agent_id": "b"},
        ],
        agent_id="a",
    )
    assert counts == {"config": 1, "view": 1, "list": 2}
    found = {
        (data_type, agent)
        for data_type in ("config", "view", "list")
        for agent in (None, "a", "b")
        if await CacheManager.get(data_type, "x", "acme", agent) is not None
    }
    assert found == {("config", None), ("config", "b"), ("view", None), ("view", "b"), ("list", None)}


async def test_without_contexts_all_contexts_are_meant(cache: Cache) -> None:
    for agent, collection in ((None, None), ("a", None), ("a", "c"), (None, "c")):
        for data_type in ("config", "view", "page"):
            await CacheManager.set(data_type, "x", 1, "acme", agent, None, collection)
    await invalidate_coordinated("acme", "config", "x", [{"data_type": "view", "resource_id": "x"}])
    assert await invalidate_resource_cache("page", "x", "acme", agent_id="a") is True
    for agent, collection in ((None, None), ("a", None), ("a", "c"), (None, "c")):
        for data_type in ("config", "view"):
            assert await CacheManager.get(data_type, "x", "acme", agent, None, collection) is None
        expected = None if (agent, collection) == ("a", None) else 1
        assert await CacheManager.get("page", "x", "acme", agent, None, collection) == expected
    assert await invalidate_resource_cache("page", "x", "acme") is True
    assert await CacheManager.get("page", "x", "acme", "a", None, "c") is None


async def test_a_whole_scope_as_the_primary_and_with_a_context(cache: Cache) -> None:
    for collection in ("c1", "c2"):
        await CacheManager.set("query_result", "q", 1, "acme", collection_id=collection)
    await invalidate_resource_cache("query_result", "*", "acme", collection_id="c1")
    assert await CacheManager.get("query_result", "q", "acme", collection_id="c1") is None
    assert await CacheManager.get("query_result", "q", "acme", collection_id="c2") == 1
    assert await invalidate_coordinated("acme", "query_result", "*") == {"query_result": 1}
    assert await CacheManager.get("query_result", "q", "acme", collection_id="c2") is None


@pytest.mark.parametrize(
    ("related", "error"),
    [
        ([{"resource_id": "x"}], ValueError),
        ([{"data_type": "view", "tenant_id": "other"}], ValueError),
        ([{"data_type": "view", "resource_id": ""}], InvalidKey),
        ([{"data_type": "view", "resource_id": "*", "agent_id": "a", "collection_id": "c"}], InvalidKey),
        ([{"data_type": "", "resource_id": "x"}], InvalidKey),
    ],
)
async def test_a_bad_related_invalidation_raises_and_nothing_is_replaced(
    cache: Cache, related: list[dict[str, str]], error: type[Exception]
) -> None:
    await CacheManager.set("config", "x", 1, "acme")
    with pytest.raises(error):
        await invalidate_coordinated("acme", "config", "x", related)
    assert await CacheManager.get("config", "x", "acme") == 1


async def test_declared_cascades_are_followed_within_the_same_step(cache: Cache) -> None:
    cache.register(Cascade("document", to=[("embedding", "doc:{resource_id}")]))
    await CacheManager.set("embedding", "doc:7", 1, "acme", "a")
    assert await invalidate_coordinated("acme", "document", "7") == {"document": 1, "embedding": 1}
    assert await CacheManager.get("embedding", "doc:7", "acme", "a") is None


async def test_the_tenant_is_needed_or_ambient(cache: Cache) -> None:
    with pytest.raises(TenantRequired):
        await invalidate_resource_cache("config", "x")
    with Context(tenant_id="acme"):
        await CacheManager.set("config", "x", 1)
        assert await invalidate_resource_cache("config", "x") is True
        assert await CacheManager.get("config", "x") is None


# -- counters --------------------------------------------------------------------------------------------


async def test_counters_are_shared_by_all_nodes(cache: Cache, redis_url: str) -> None:
    assert await get_counter("hits", "acme") == 0
    assert await increment_counter("hits", "acme") == 1
    assert await increment_counter("hits", "acme", 5) == 6
    assert await increment_counter("hits", "acme", value=-2) == 4
    assert await increment_counter("hits", "acme", 1, "page:7", "a", "v", "c") == 1
    assert await get_counter("hits", "acme", "page:7", "a", "v", "c") == 1
    assert await get_counter("hits", "acme", "page:7") == 0
    assert await get_counter("hits", "other") == 0
    async with nodes(redis_url, 1) as (other,):
        await asyncio.gather(*(c.increment("hits", tenant_id="acme") for c in (cache, other) for _ in range(50)))
        assert await other.increment("hits", tenant_id="acme", value=0) == 104
    assert await get_counter("hits", "acme") == 104


async def test_a_request_id_counts_once(cache: Cache, redis_url: str) -> None:
    async with nodes(redis_url, 1) as (other,):
        for _ in range(3):
            assert await increment_counter("hits", "acme", 2, request_id="r1") == 2
            assert await other.increment("hits", "acme", 2, request_id="r1") == 2
        assert await increment_counter("hits", "acme", 2, request_id="r2") == 4


async def test_counters_do_not_expire_unless_told_and_invalidations_leave_them(
    cache: Cache, redis_server: EmbeddedServer
) -> None:
    await increment_counter("hits", "acme", resource_id="x")
    await increment_counter("hits", "acme", resource_id="y", expires_in_s=60)
    first = int(redis_server.command("PTTL", "{cachebus:0}:c:acme:hits:y")[1:])
    assert 50_000 < first <= 60_000
    assert redis_server.command("PTTL", "{cachebus:0}:c:acme:hits:x") == ":-1"
    await cache.invalidate_scope("acme")
    await cache.invalidate("hits", "x", tenant_id="acme", contexts="all")
    assert await get_counter("hits", "acme", "x") == 1
    with pytest.raises(ValueError, match="ttl"):
        await increment_counter("hits", "acme", expires_in_s=0)
    assert await increment_counter("brief", "acme", expires_in_s=0.05) == 1

    async def over() -> bool:
        return await get_counter("brief", "acme") == 0

    await until(over)


@pytest.mark.parametrize("amount", [1.5, "1", True, None])
async def test_only_whole_numbers_are_counted(cache: Cache, amount: Any) -> None:
    with pytest.raises(ValueError, match="int"):
        await increment_counter("hits", "acme", amount)


async def test_own_metrics_are_counted_and_noted(cache: Cache) -> None:
    with Context(tenant_id="acme") as around:
        await track_cache_metrics("config", "acme", "rendered")
        await track_cache_metrics("config", "acme", "rendered", 2.6, {"template": "t"})
    assert around.metrics["config.rendered"] == {"value": 2.6, "template": "t"}
    assert await get_counter("metric_rendered", "acme", "config") == 4


async def test_own_metrics_never_fail_a_request(own_server: EmbeddedServer) -> None:
    async with lifespan(quick(own_server.url)) as cache:
        own_server.kill()
        await track_cache_metrics("config", "acme", "rendered")
        with pytest.raises(L2Unavailable):
            await get_counter("metric_rendered", "acme", "config")
        assert cache.stats().l2_errors >= 2


# -- hashing and serialization ---------------------------------------------------------------------------

PARTS: tuple[Any, ...] = (
    "text",
    7,
    1.5,
    None,
    True,
    b"bytes",
    ["a", {"z": 1, "a": {3, 1, 2}}],
    {"b": [1], "a": (2,)},
    datetime(2026, 1, 2, tzinfo=UTC),
    UUID(int=7),
    {"x", "y", "z"},
)
HASH = "from cachebus import *\nimport json, sys\nfrom tests.integration.test_helpers import PARTS\n"


def test_a_hash_is_the_same_in_every_process() -> None:
    here = generate_resource_id_hash(*PARTS)
    for seed in ("0", "77"):
        done = subprocess.run(
            [sys.executable, "-c", HASH + "print(generate_resource_id_hash(*PARTS))"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == here
    assert len(here) == 32
    assert int(here, 16) >= 0


def test_a_hash_is_the_same_in_every_version() -> None:
    assert generate_resource_id_hash("a", 1) == "51ac3d42ddc36ed0e3b351d65b47a60a"
    assert generate_resource_id_hash({"q": "x", "limit": [1, 2.5]}) == "90b303cf8226c5582a5ae7a8db06d1e3"


@pytest.mark.parametrize(
    "others",
    [(1, "1", 1.0, True, None, b"1", [1], {"1": 1}), (("a", "b"), ("ab",), (["a", "b"],), ("a", "", "b"), ())],
    ids=["types", "joins"],
)
def test_different_parts_have_different_hashes(others: tuple[Any, ...]) -> None:
    hashes = [generate_resource_id_hash(*(one if isinstance(one, tuple) else (one,))) for one in others]
    assert len(set(hashes)) == len(hashes)


def test_a_hash_does_not_regard_the_order_of_mappings_and_sets() -> None:
    assert generate_resource_id_hash({"a": 1, "b": {"c": 2, "d": 3}}) == generate_resource_id_hash(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert generate_resource_id_hash({3, 1, 2}) == generate_resource_id_hash({1, 2, 3})
    assert generate_resource_id_hash([1, 2]) != generate_resource_id_hash([2, 1])


@pytest.mark.parametrize(
    "part",
    [object(), lambda: 1, 1j, "\ud800", {"a": object()}],
    ids=["object", "function", "complex", "surrogate", "inside"],
)
def test_what_cannot_be_hashed_is_refused(part: Any) -> None:
    with pytest.raises(NotSerializable):
        generate_resource_id_hash(part)


async def test_serializing_by_the_rules_of_a_type(cache: Cache) -> None:
    for data_type in ("config", "squeezed"):
        value = {"a": [1, 2.5, None, b"x", "y" * 500]}
        data = serialize_for_cache(value, data_type)
        assert isinstance(data, bytes)
        assert deserialize_from_cache(data, data_type) == value
    assert len(serialize_for_cache(value, "squeezed")) < len(serialize_for_cache(value, "config")) / 2
    assert deserialize_from_cache(serialize_for_cache([0.5, 1.5], "f32"), "f32") == [0.5, 1.5]
    with pytest.raises(NotSerializable):
        serialize_for_cache(object(), "config")


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff\x01", b"\x01\xc1", b"\x01", b"\x83junk", bytes(range(256))])
async def test_bytes_that_are_no_value_are_refused(cache: Cache, data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each has its own words)
        deserialize_from_cache(data, "config")


# -- the decorator ---------------------------------------------------------------------------------------


async def test_a_decorated_function_is_loaded_once(cache: Cache, redis_url: str) -> None:
    calls: list[tuple[Any, ...]] = []

    @cached("agent_config", resource_id="{agent_id}", tenant_id="{tenant_id}", tags=["agents"], ignore=["verbose"])
    async def agent(agent_id: str, tenant_id: str, verbose: bool = False) -> dict[str, Any]:
        """Its own words."""
        calls.append((agent_id, tenant_id, verbose))
        return {"id": agent_id, "of": tenant_id}

    assert (agent.__name__, agent.__doc__) == ("agent", "Its own words.")
    for _ in range(3):
        assert await agent("a7", "acme") == {"id": "a7", "of": "acme"}
        assert await agent(tenant_id="acme", agent_id="a7", verbose=True) == {"id": "a7", "of": "acme"}
    assert await agent("a7", "other") == {"id": "a7", "of": "other"}
    assert calls == [("a7", "acme", False), ("a7", "other", False)]
    assert await CacheManager.get("agent_config", "a7", "acme") == {"id": "a7", "of": "acme"}
    await cache.invalidate_tags(["agents"], tenant_id="acme")
    await agent("a7", "acme", verbose=True)
    assert calls[-1] == ("a7", "acme", True)


async def test_a_decorated_method_with_contexts_and_the_ambient_tenant(cache: Cache) -> None:
    class Service:
        loads = 0

        @cached("page", resource_id="{book}:{number}", agent_id="{agent}", ttl=60)
        async def page(self, book: str, number: int = 1, agent: str | None = None) -> str:
            Service.loads += 1
            return f"{book}/{number}/{agent}"

    with Context(tenant_id="acme"):
        for _ in range(2):
            assert await Service().page("b", 2) == "b/2/None"
            assert await Service().page("b", agent="a7") == "b/1/a7"
            assert await Service().page("b", agent="None") == "b/1/None"
    assert Service.loads == 3  # no agent is none, not one called "None"
    assert await CacheManager.get("page", "b:2", "acme") == "b/2/None"
    with pytest.raises(TenantRequired):
        await Service().page("b", 2)


async def test_a_none_in_a_decorated_functions_id_is_never_written_out(cache: Cache) -> None:
    @cached("page", resource_id="p:{number}", tenant_id="{tenant}")
    async def page(number: int | None, tenant: str | None) -> str:
        return f"{number}/{tenant}"

    with pytest.raises(TenantRequired):
        await page(1, None)
    with pytest.raises(InvalidKey, match="number"):
        await page(None, "acme")
    with Context(tenant_id="acme"):
        assert await page(1, None) == "1/None"
    assert await CacheManager.get("page", "p:1", "acme") == "1/None"


async def test_a_decorated_function_may_name_its_cache(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (own,):

        @cached("config", resource_id="x", tenant_id="acme", cache=own)
        async def config() -> int:
            return 1

        assert await config() == 1
        assert await own.get("config", "x", tenant_id="acme") == 1


def test_an_unknown_placeholder_is_refused_where_the_function_is_decorated() -> None:
    with pytest.raises(ConfigError, match="nobody"):

        @cached("config", resource_id="{nobody}")
        async def config(x: int) -> int:
            return x


async def test_a_decorated_function_before_the_cache_is_open() -> None:
    @cached("config", resource_id="x", tenant_id="acme")
    async def config() -> int:
        return 1

    with pytest.raises(ConfigError, match="lifespan"):
        await config()


@dataclass
class Unused:
    """Kept so that hashing a dataclass has something to hash."""

    a: int
    b: str


def test_a_dataclass_is_hashed_by_its_type_and_fields() -> None:
    assert generate_resource_id_hash(Unused(1, "x")) == generate_resource_id_hash(Unused(1, "x"))
    assert generate_resource_id_hash(Unused(1, "x")) != generate_resource_id_hash(Unused(2, "x"))
    assert generate_resource_id_hash(Unused(1, "x")) != generate_resource_id_hash({"a": 1, "b": "x"})
