"""The verbs of a cache, over a real server: what goes in comes out, on every node."""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import BaseModel, field_validator

from cachebus import (
    MISSING,
    TTL_PERMANENT,
    Cache,
    CacheBusError,
    ConfigError,
    Context,
    InvalidKey,
    NotSerializable,
    Policy,
    Receipt,
    Target,
    TenantRequired,
    ValueTooLarge,
    with_context,
)
from cachebus.many import MANY
from cachebus.reading.fetch import Fetcher
from cachebus.resp import link
from tests.support.caches import Source, asked, data_calls, deaf, nodes, parts, until


class Item(BaseModel):
    """A pydantic model."""

    name: str
    price: float = 0.0


@dataclass
class Point:
    """A dataclass."""

    x: int
    y: int


POLICIES = {
    "copied": Policy(copy=True),
    "item": Policy(model=Item),
    "point": Policy(model=Point),
    "items": Policy(model=list[Item]),
    "unfinished": Policy(),
    "small": Policy(max_value_bytes=100),
    "uncached": Policy(l1=False),
    "negative": Policy(negative_ttl_s=60),
    "tagged": Policy(tags=("of:{resource_id}", "all")),
}


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[Cache]]:
    """Two nodes over one server."""
    async with nodes(redis_url, policies=POLICIES) as caches:
        yield caches


# -- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [0, False, "", b"", [], {}, 1.5, "text", b"\x00\xff", {"a": [1, {"b": None}]}, [0.1] * 50, 2**70, {1: 2}],
    ids=repr,
)
async def test_a_value_comes_back_as_it_was_on_every_node(pair: list[Cache], value: Any) -> None:
    a, b = pair
    await a.set("config", "x", value, tenant_id="acme")
    for cache in (a, a, b, b):
        found = await cache.get("config", "x", tenant_id="acme", default=MISSING)
        assert (type(found), found) == (type(value), value)


async def test_a_tuple_is_a_list_from_the_first_return_on(pair: list[Cache]) -> None:
    a, b = pair
    assert await a.get_or_load("config", "x", lambda: (1, (2, 3)), tenant_id="acme") == [1, [2, 3]]
    assert await b.get("config", "x", tenant_id="acme") == [1, [2, 3]]
    await a.set("config", "y", (4, 5), tenant_id="acme")
    assert await a.get("config", "y", tenant_id="acme") == [4, 5]


async def test_a_model_comes_back_as_one(pair: list[Cache]) -> None:
    a, b = pair
    await a.set("item", "i", Item(name="pen", price=2), tenant_id="acme")
    await a.set("point", "p", Point(1, 2), tenant_id="acme")
    await a.set("items", "all", [Item(name="ink")], tenant_id="acme")
    for cache in pair:
        assert await cache.get("item", "i", tenant_id="acme") == Item(name="pen", price=2)
        assert await cache.get("point", "p", tenant_id="acme") == Point(1, 2)
        assert await cache.get("items", "all", tenant_id="acme") == [Item(name="ink")]
    assert await b.get_or_load("item", "j", lambda: {"name": "cup"}, tenant_id="acme") == Item(name="cup")
    with pytest.raises(NotSerializable, match="model"):
        await a.set("item", "k", {"price": "much"}, tenant_id="acme")


@dataclass
class Unfinished:
    """One whose total comes later."""

    id: int
    total: float = field(init=False)


async def test_a_loader_whose_value_can_not_be_encoded_blocks_nobody(pair: list[Cache]) -> None:
    a, b = pair
    for data_type in ("config", "unfinished"):
        found = await a.get_or_load(data_type, "x", lambda: Unfinished(1), tenant_id="acme")
        assert type(found) is Unfinished
        assert a.stats().types[data_type].serialization_errors == 1
        assert await b.get_or_load(data_type, "x", lambda: {"id": 1, "total": 2.0}, tenant_id="acme") is not None
        assert b.stats().types[data_type].loads == 1


async def test_copy_hands_each_caller_its_own(pair: list[Cache]) -> None:
    for cache in pair:
        first = await cache.get_or_load("copied", "x", lambda: {"list": [1]}, tenant_id="acme")
        first["list"].append(2)
        second = await cache.get("copied", "x", tenant_id="acme")
        assert second == {"list": [1]}
        second["list"].append(3)
        found = await cache.get_many("copied", ["x"], tenant_id="acme")
        assert found == {"x": {"list": [1]}}


async def test_the_object_that_was_set_is_not_shared(pair: list[Cache]) -> None:
    value = {"a": 1}
    await pair[0].set("config", "x", value, tenant_id="acme")
    value["a"] = 2
    assert await pair[0].get("config", "x", tenant_id="acme") == {"a": 1}


@pytest.mark.parametrize("value", [object(), lambda: 1, {"a": {1, object()}}], ids=["object", "function", "nested"])
async def test_what_cannot_be_encoded_is_refused_and_changes_nothing(pair: list[Cache], value: Any) -> None:
    a, b = pair
    await a.set("config", "x", 1, tenant_id="acme")
    with pytest.raises(NotSerializable):
        await a.set("config", "x", value, tenant_id="acme")
    with pytest.raises(NotSerializable):
        await a.add("config", "y", value, tenant_id="acme")
    assert (await a.get("config", "x", tenant_id="acme"), await b.get("config", "x", tenant_id="acme")) == (1, 1)


async def test_what_is_too_large_is_refused_and_a_load_still_returns_it(pair: list[Cache]) -> None:
    a = pair[0]
    with pytest.raises(ValueTooLarge, match="at most 100"):
        await a.set("small", "x", "x" * 101, tenant_id="acme")
    source = Source(x="x" * 101)
    for loads in (1, 2):
        assert await a.get_or_load("small", "x", source.load, tenant_id="acme") == "x" * 101
        assert source.calls == loads
    assert a.stats().types["small"].serialization_errors == 2


async def test_a_load_of_what_cannot_be_encoded_still_returns_it(pair: list[Cache]) -> None:
    thing = object()
    for cache in pair:
        assert await cache.get_or_load("config", "x", lambda: thing, tenant_id="acme") is thing
        assert cache.stats().types["config"].serialization_errors == 1


# -- absent, None and not found --------------------------------------------------------------------------


async def test_what_is_absent_is_the_default(pair: list[Cache]) -> None:
    a = pair[0]
    assert await a.get("config", "x", tenant_id="acme") is None
    assert await a.get("config", "x", tenant_id="acme", default=7) == 7
    assert await a.get("config", "x", tenant_id="acme", default=MISSING) is MISSING
    assert repr(MISSING) == "MISSING"


async def test_a_none_that_was_set_is_a_value(pair: list[Cache]) -> None:
    await pair[0].set("config", "x", None, tenant_id="acme")
    for cache in (*pair, *pair):
        assert await cache.get("config", "x", tenant_id="acme", default=7) is None
        assert await cache.get("config", "x", tenant_id="acme", default=7, use_memory=False) is None
        assert await cache.get_many("config", ["x", "y"], tenant_id="acme") == {"x": None}
        assert await cache.get("config", "x", "acme", "a7", search_hierarchy=True, default=7) is None


async def test_not_found_is_the_default_of_a_get_and_no_second_load(pair: list[Cache]) -> None:
    source = Source()
    for cache in pair:
        assert await cache.get_or_load("negative", "x", source.load, tenant_id="acme") is None
        for use_memory in (True, False):
            assert await cache.get("negative", "x", "acme", default=7, use_memory=use_memory) == 7
        assert await cache.get_many("negative", ["x"], tenant_id="acme") == {}
    assert source.calls == 1
    source.values["x"] = 1
    await pair[0].invalidate("negative", "x", tenant_id="acme")
    assert await pair[0].get_or_load("negative", "x", source.load, tenant_id="acme") == 1


async def test_without_a_negative_ttl_not_found_is_not_kept(pair: list[Cache]) -> None:
    source = Source()
    assert await pair[0].get_or_load("config", "x", source.load, tenant_id="acme") is None
    source.values["x"] = 1
    assert await pair[0].get_or_load("config", "x", source.load, tenant_id="acme") == 1
    assert source.calls == 2


# -- get, add, delete ------------------------------------------------------------------------------------


async def test_a_hit_asks_nothing_of_the_store(pair: list[Cache]) -> None:
    a = pair[0]
    await a.set("config", "x", 1, tenant_id="acme")
    with asked(a) as counts:
        for _ in range(5):
            assert await a.get("config", "x", tenant_id="acme") == 1
            assert await a.get_or_load("config", "x", Source().load, tenant_id="acme") == 1
    assert data_calls(counts) == 0
    assert a.stats().types["config"].l1_hits == 10


async def test_use_memory_false_asks_l2_each_time(pair: list[Cache]) -> None:
    a = pair[0]
    await a.set("config", "x", 1, tenant_id="acme")
    with asked(a) as counts:
        assert await a.get("config", "x", tenant_id="acme", use_memory=False) == 1
        assert await a.get_or_load("config", "x", Source().load, tenant_id="acme", use_memory=False) == 1
    assert data_calls(counts) == 2
    assert await pair[1].get("config", "x", tenant_id="acme", use_memory=False) == 1
    assert len(parts(pair[1]).node.l1) == 0


async def test_a_type_may_stay_out_of_memory(pair: list[Cache]) -> None:
    a = pair[0]
    await a.set("uncached", "x", 1, tenant_id="acme")
    with asked(a) as counts:
        assert [await a.get("uncached", "x", tenant_id="acme") for _ in range(3)] == [1, 1, 1]
    assert data_calls(counts) == 3
    assert len(parts(a).node.l1) == 0


async def test_get_many_gives_what_is_there_by_the_ids_asked(pair: list[Cache]) -> None:
    a, b = pair
    for i in range(4):
        await a.set("embedding", i, [i / 2], tenant_id="acme")
    await b.get("embedding", 1, tenant_id="acme")
    with asked(b) as counts:
        found = await b.get_many("embedding", [3, 1, 9, "0", 3], tenant_id="acme")
    assert found == {3: [1.5], 1: [0.5], "0": [0.0]}
    assert list(found) == [3, 1, "0"]
    assert (counts["get"], counts["read"]) in ((3, 0), (0, 1))
    with asked(b) as counts:
        assert await b.get_many("embedding", (1, 3), tenant_id="acme") == {1: [0.5], 3: [1.5]}
    assert data_calls(counts) == 0
    assert await b.get_many("embedding", [], tenant_id="acme") == {}


@pytest.mark.parametrize("may_judge", [True, False], ids=["by plain gets", "by the script"])
async def test_get_many_of_very_many_holds_up_nobody(pair: list[Cache], may_judge: bool) -> None:
    a, b = pair
    store, most = parts(b).store, 0
    get, read = store.get, store.read
    under_way = 0

    def counted(key: Any) -> Any:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        reply = get(key)
        reply.add_done_callback(landed)
        return reply

    def landed(_: Any) -> None:
        nonlocal under_way
        under_way -= 1

    def scripted(shard: int, caller: Any, keys: Any) -> Any:
        nonlocal most
        most = max(most, len(keys))
        return read(shard, caller, keys)

    await a.set("embedding", 7_777, [1.5], tenant_id="acme")
    with (
        patch.object(store, "get", counted),
        patch.object(store, "read", scripted),
        patch.object(Fetcher, "may_judge", lambda *_: may_judge),
    ):
        assert await b.get_many("embedding", range(10_000), tenant_id="acme") == {7_777: [1.5]}
    assert 0 < most <= MANY


async def test_get_many_of_more_than_may_wait_for_answers_fails_nobody(
    pair: list[Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither itself nor others, whose calls wait in the same line."""
    a, b = pair
    monkeypatch.setattr(link, "PENDING_MAX", 1_000)
    await a.set("embedding", 7_777, [1.5], tenant_id="acme")
    batch = asyncio.create_task(b.get_many("embedding", range(10_000), tenant_id="acme"))
    others = 0
    while not batch.done():
        assert await b.get("embedding", 7_777, tenant_id="acme", use_memory=False) == [1.5]
        others += 1
    assert await batch == {7_777: [1.5]}
    assert others > 10
    assert b.stats().l2_errors == 0


async def test_get_many_of_more_than_one_batch(pair: list[Cache]) -> None:
    a, b = pair
    for i in range(0, 1500, 100):
        await a.set("embedding", i, i, tenant_id="acme")
    found = await b.get_many("embedding", range(1500), tenant_id="acme")
    assert found == {i: i for i in range(0, 1500, 100)}


async def test_add_stores_for_one_caller_in_the_fleet(pair: list[Cache]) -> None:
    a, b = pair
    assert await a.add("job_lock", "42", "a", tenant_id="acme") is True
    assert await b.add("job_lock", "42", "b", tenant_id="acme") is False
    assert await a.add("job_lock", "42", "a", tenant_id="acme") is False
    assert await b.get("job_lock", "42", tenant_id="acme") == "a"
    await b.delete("job_lock", "42", tenant_id="acme")
    assert await b.add("job_lock", "42", "b", 60, "acme") is True
    assert await until(lambda: a.get("job_lock", "42", tenant_id="acme")) == "b"


async def test_delete_removes_here_at_once_and_elsewhere_soon(pair: list[Cache]) -> None:
    a, b = pair
    await a.set("config", "x", 1, tenant_id="acme")
    assert await b.get("config", "x", tenant_id="acme") == 1
    with deaf(a):
        receipt = await a.delete("config", "x", tenant_id="acme")
        assert await a.get("config", "x", tenant_id="acme") is None
    assert (receipt.status, receipt.stored, dict(receipt.targets)) == ("applied", True, {"config": 1})

    async def gone() -> bool:
        return await b.get("config", "x", tenant_id="acme") is None

    await until(gone)


async def test_a_namespace_is_a_world_of_its_own(redis_url: str) -> None:
    async with nodes(redis_url, 1, namespace="one") as (one,), nodes(redis_url, 1, namespace="two", shards=4) as (two,):
        await one.set("config", "x", 1, tenant_id="acme")
        assert await two.get("config", "x", tenant_id="acme") is None


async def test_many_shards(redis_url: str) -> None:
    async with nodes(redis_url, shards=7) as (a, b):
        for tenant in range(20):
            await a.set("config", "x", tenant, tenant_id=tenant)
        assert [await b.get("config", "x", tenant_id=t) for t in range(20)] == list(range(20))
        receipts = [await a.invalidate("config", "x", tenant_id=t) for t in range(20)]
        assert len({receipt.shard for receipt in receipts}) == 7
        for tenant, receipt in enumerate(receipts):
            assert await b.get("config", "x", tenant_id=tenant, after=receipt) is None


# -- keys, tenants, contexts -----------------------------------------------------------------------------

BAD_PARTS: list[dict[str, Any]] = [
    {"agent_id": ""},
    {"conversation_id": ""},
    {"collection_id": ""},
    {"tenant_id": ""},
    {"resource_id": ""},
    {"data_type": ""},
    {"resource_id": "a\x1fb"},
    {"agent_id": "x\x1e"},
    {"resource_id": "x" * 513},
    {"tenant_id": "acme\x1fconfig\x1fx\x1e\x1e\x1e"},
]


@pytest.mark.parametrize("bad", BAD_PARTS, ids=lambda bad: next(iter(bad)))
async def test_an_invalid_part_is_refused_cold_and_warm(pair: list[Cache], bad: dict[str, Any]) -> None:
    a = pair[0]
    good: dict[str, Any] = {"data_type": "config", "resource_id": "x", "tenant_id": "acme"}
    ids = {**good, **bad}
    for _ in ("cold", "warm"):
        for name in ("get", "invalidate", "delete"):
            with pytest.raises(InvalidKey):
                await getattr(a, name)(**ids)
        with pytest.raises(InvalidKey):
            await a.get_or_load(loader=lambda: 1, **ids)
        with pytest.raises(InvalidKey):
            await a.set(value=1, **ids)
        with pytest.raises(InvalidKey):
            await a.get_many(ids.pop("data_type"), [ids.pop("resource_id")], **ids)
        ids = {**good, **bad}
        for context in ({}, {"agent_id": "a"}, {"conversation_id": "a"}, {"collection_id": "a"}):
            await a.set(value=1, **good, **context)


async def test_an_empty_tenant_is_not_the_one_of_system_data(pair: list[Cache]) -> None:
    a = pair[0]
    await a.set("system", "x", 1)
    assert await a.get("system", "x") == 1
    for _ in range(2):
        with pytest.raises(InvalidKey, match="tenant_id"):
            await a.get("system", "x", tenant_id="")
        with pytest.raises(InvalidKey, match="tenant_id"):
            await a.get_or_load("system", "x", lambda: 2, tenant_id="")


async def test_all_but_system_data_needs_a_tenant(pair: list[Cache]) -> None:
    a = pair[0]
    for call in (
        lambda: a.get("config", "x"),
        lambda: a.set("config", "x", 1),
        lambda: a.add("config", "x", 1),
        lambda: a.delete("config", "x"),
        lambda: a.get_many("config", ["x"]),
        lambda: a.increment("hits"),
        lambda: a.get_or_load("config", "x", lambda: 1),
        a.invalidate_scope,
        lambda: a.invalidate_scope(data_type="config"),
    ):
        with pytest.raises(TenantRequired):
            await call()


async def test_the_tenant_comes_from_the_surrounding_context(pair: list[Cache]) -> None:
    a, b = pair
    with Context(tenant_id="acme"):
        await a.set("config", "x", 1)
        assert await a.get("config", "x") == 1
        assert await a.get("config", "x", tenant_id="other") is None
    async with Context(tenant_id="other"):
        assert await a.get("config", "x") is None
        assert await a.get("config", "x", tenant_id="acme") == 1

    @with_context()
    async def inside(tenant_id: str) -> Any:
        return await b.get("config", "x")

    assert await inside("acme") == 1
    assert await inside(tenant_id="other") is None


async def test_system_data_ignores_the_ambient_tenant_but_not_a_given_one(pair: list[Cache]) -> None:
    a, b = pair
    with Context(tenant_id="acme"):
        await a.set("system", "x", "shared")
        await a.set("system", "x", "acme's", tenant_id="acme")
        assert await b.get("system", "x") == "shared"
    assert await b.get("system", "x") == "shared"
    assert await b.get("system", "x", tenant_id="acme") == "acme's"
    await b.delete("system", "x")
    assert await b.get("system", "x") is None
    assert await b.get("system", "x", tenant_id="acme") == "acme's"


async def test_ids_with_separators_do_not_meet(pair: list[Cache]) -> None:
    a, b = pair
    ids = ["job:42", "job%3A42", "**", "%2A", "agent:a", "a:b:c", "ключ", "x y"]
    for i, resource_id in enumerate(ids):
        await a.set("config", resource_id, i, tenant_id="a:b")
    await a.set("b:config", "job:42", "other", tenant_id="a")
    assert await b.get_many("config", ids, tenant_id="a:b") == {resource_id: i for i, resource_id in enumerate(ids)}
    await a.delete("config", "**", tenant_id="a:b")
    assert len(await a.get_many("config", ids, tenant_id="a:b")) == len(ids) - 1


async def test_a_number_and_its_digits_are_one_id(pair: list[Cache]) -> None:
    await pair[0].set("config", 7, "x", tenant_id=0)
    for cache in pair:
        assert [await cache.get("config", i, tenant_id=t) for i in (7, "7") for t in (0, "0")] == ["x"] * 4


# -- ttl and receipts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0, -1, math.nan, True, "60", 1e300, -math.inf], ids=repr)
async def test_a_bad_ttl_is_refused(pair: list[Cache], ttl: Any) -> None:
    a = pair[0]
    for _ in range(2):
        with pytest.raises(ValueError, match="ttl"):
            await a.set("config", "x", 1, tenant_id="acme", ttl=ttl)
        with pytest.raises(ValueError, match="ttl"):
            await a.add("config", "x", 1, ttl, tenant_id="acme")
        with pytest.raises(ValueError, match="ttl"):
            await a.get_or_load("config", "x", lambda: 1, tenant_id="acme", ttl=ttl)
    assert await a.get("config", "x", tenant_id="acme") is None


@pytest.mark.parametrize(
    "receipt", ["", "x", "0.0.0", "1.deadbeef.1", "0." + "g" * 16 + ".1", "0." + "a" * 16 + ".-1", 7, b"0", object()]
)
async def test_a_bad_receipt_is_refused_cold_and_warm(pair: list[Cache], receipt: Any) -> None:
    a = pair[0]
    for _ in range(2):
        with pytest.raises(ValueError, match="receipt"):
            await a.get("config", "x", tenant_id="acme", after=receipt)
        with pytest.raises(ValueError, match="receipt"):
            await a.get_many("config", ["x"], tenant_id="acme", after=receipt)
        with pytest.raises(ValueError, match="receipt"):
            await a.get_or_load("config", "x", lambda: 1, tenant_id="acme", after=receipt)
        await a.set("config", "x", 1, tenant_id="acme")


async def test_a_pending_receipt_stands_for_nothing_yet(pair: list[Cache]) -> None:
    receipt = Receipt(0, "a" * 16, 1, status="pending")
    with pytest.raises(ValueError, match="pending"):
        await pair[0].get("config", "x", tenant_id="acme", after=receipt)


async def test_a_ttl_reaches_the_server(redis_server: Any) -> None:
    async with nodes(redis_server.url, 1, guard_max_s=0) as (a,):
        await a.set("config", "short", 1, tenant_id="acme", ttl=60)
        await a.set("config", "long", 1, tenant_id="acme", ttl=TTL_PERMANENT)
        await a.set("config", "usual", 1, tenant_id="acme")
    names = ["{cachebus:0}:r:acme:config:" + name for name in ("short", "long", "usual")]
    short, long, usual = (int(redis_server.command("PTTL", name)[1:]) for name in names)
    assert 50_000 < short <= 60_000
    assert long == -1
    assert 3_590_000 < usual <= 3_600_000


async def test_bad_tags_and_contexts_are_refused(pair: list[Cache]) -> None:
    a = pair[0]
    with pytest.raises(ValueError, match="tags"):
        await a.set("config", "x", 1, tenant_id="acme", tags="plan")
    with pytest.raises(ValueError, match="tags"):
        await a.invalidate_tags("plan", tenant_id="acme")
    with pytest.raises(ValueError, match="tags"):
        await a.invalidate_tags([], tenant_id="acme")
    with pytest.raises(InvalidKey, match="tag"):
        await a.set("config", "x", 1, tenant_id="acme", tags=[""])
    with pytest.raises(ValueError, match="contexts"):
        await a.invalidate("config", "x", tenant_id="acme", contexts="some")
    with pytest.raises(ValueError, match="contexts"):
        await a.invalidate_targets([Target("config", "x")], "acme", contexts="some")
    with pytest.raises(InvalidKey):
        await a.invalidate_scope("acme", "config", agent_id="a", collection_id="c")


async def test_a_cache_that_is_not_open_says_how_to_open_it(redis_url: str) -> None:
    cache = Cache.open(redis_url)
    with pytest.raises(ConfigError, match="async with"):
        await cache.get("config", "x", "acme")
    with pytest.raises(ConfigError, match="async with"):
        await cache.set("config", "x", 1, "acme")
    with pytest.raises(ConfigError):
        cache.stats()
    assert issubclass(ConfigError, CacheBusError)


class Cost(int, enum.Enum):
    """Amounts with names."""

    READ = 4


class Amount(int):
    """One that writes itself in its own way."""

    def __str__(self) -> str:
        return "999"

    def __int__(self) -> int:
        return 999

    def __lt__(self, other: object) -> bool:
        return True


@pytest.mark.parametrize("where", ["redis", "memory"])
async def test_a_counter_counts_what_an_int_of_another_class_holds(where: str, redis_url: str) -> None:
    async with nodes(redis_url if where == "redis" else "memory://", 1) as (cache,):
        assert await cache.increment("calls", tenant_id="acme", value=Cost.READ) == 4
        assert await cache.increment("calls", tenant_id="acme", value=Amount(1)) == 5
        assert await cache.increment("calls", tenant_id="acme", value=0) == 5


async def test_what_the_first_reader_of_a_copy_does_to_it_reaches_nobody(redis_url: str) -> None:
    """Also where no other copy can be made later, since a validator has changed its mind."""
    minds = {"open": True}

    class Minded(BaseModel):
        items: list[int]

        @field_validator("items")
        @classmethod
        def mind(cls, items: list[int]) -> list[int]:
            if not minds["open"]:
                raise ValueError("not now")
            return items

    async with nodes(redis_url, 2, policies={"own": Policy(model=Minded, copy=True)}) as (a, b):
        await a.set("own", "x", Minded(items=[1]), tenant_id="acme")
        first = await b.get("own", "x", tenant_id="acme")
        first.items.append(666)
        minds["open"] = False
        second = await b.get("own", "x", tenant_id="acme")
        assert second.items == [1]
