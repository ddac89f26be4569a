"""`cache.of(...)`: the verbs of one data type, as typed as its model, and never another type's or tenant's."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from cachebus import (
    MISSING,
    Cache,
    CacheManager,
    ConfigError,
    Context,
    InvalidKey,
    NotSerializable,
    Policy,
    TenantRequired,
    TypedCache,
    cached,
    lifespan,
)
from tests.support.caches import Source, asked, data_calls, heard, nodes, quick
from tests.support.logs import told


class Product(BaseModel):
    name: str
    price: int = 1


@dataclass(frozen=True)
class Other:
    name: str


PATIENT = 10.0
"""`l2_timeout_s`: nothing here is about time."""
LAMP, DESK = Product(name="lamp"), Product(name="desk")


async def test_every_verb_does_what_the_caches_does_for_its_type(redis_url: str) -> None:
    async with nodes(redis_url, 2, l2_timeout_s=PATIENT) as (a, b):
        here, there = a.of("product", model=Product), b.of("product", model=Product)
        assert here.data_type == "product"
        assert await here.get(7, "acme") is None
        assert await here.get(7, "acme", default=MISSING) is MISSING
        await here.set(7, LAMP, "acme")
        assert await here.get(7, "acme") == await there.get("7", tenant_id="acme") == LAMP
        assert await a.get("product", 7, "acme") == LAMP
        assert await here.get(7, "acme", "a7") is None
        assert await here.get(7, "acme", "a7", search_hierarchy=True) == LAMP
        assert not await here.add(7, DESK, "acme")
        assert await here.add(8, DESK, "acme", ttl=60)
        assert await there.get_many([7, 8, 9], "acme") == {7: LAMP, 8: DESK}
        receipt = await there.invalidate(7, "acme", reason="import", wait="nodes")
        assert receipt.confirmed or receipt.lapsed or receipt.seq
        assert await here.get(7, "acme", after=receipt) is None
        source = Source()
        any_id: Any = 7
        source.values[any_id] = DESK
        for handle in (here, there):
            assert await handle.get_or_load(7, source.load, "acme") == DESK
        assert source.calls == 1
        await here.delete(8, "acme")
        assert await here.get(8, "acme", use_memory=False) is None
        await here.set(9, LAMP, "acme", "a1")
        heard_by = await here.invalidate(9, "acme", contexts="all")
        await heard([b], heard_by)
        assert await there.get(9, "acme", "a1") is None


async def test_a_hit_asks_nobody_and_is_counted_as_the_types(redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=PATIENT) as (a,):
        products = a.of("product", model=Product)
        await products.set(7, LAMP, "acme", "a7")
        await products.set(7, DESK, "acme")
        before = a.stats().types["product"].l1_hits
        with asked(a) as counts:
            for verb in (products.get(7, "acme"), products.get_or_load(7, lambda: LAMP, "acme")):
                assert await verb == DESK
            for verb in (products.get("7", "acme", "a7"), products.get_or_load(7, lambda: DESK, "acme", "a7")):
                assert await verb == LAMP
        assert data_calls(counts) == 0
        assert a.stats().types["product"].l1_hits == before + 4


async def test_what_a_hit_goes_by_can_not_be_another_types_or_tenants(redis_url: str) -> None:
    class Sly(str):
        __slots__ = ()

        def __format__(self, spec: str) -> str:
            return "acme\x1fsecret\x1f7"

    async with nodes(redis_url, 1, l2_timeout_s=PATIENT) as (a,):
        secrets, products = a.of("secret"), a.of("product")
        await secrets.set(7, "s", "acme")
        await secrets.set(8, "s", "acme", "a7")
        for wrong in ("acme\x1fsecret", "", True, b"acme", 1.0):
            bad: Any = wrong
            with pytest.raises(InvalidKey):
                await products.get(7, bad)
            with pytest.raises(InvalidKey):
                await products.get(bad, "acme")
        assert await products.get(7, Sly("x")) is None
        assert await products.get(Sly("7"), "acme") is None
        assert await secrets.get(8, "acme", Sly("a7")) == "s"
        assert await products.get(7, "acme") is None
        assert await products.get(UUID(int=7), "acme") is None
        with pytest.raises(TenantRequired):
            await secrets.get(7)
        with Context(tenant_id="acme"):
            assert await secrets.get(7) == "s"
        with Context(tenant_id="other"):
            assert await secrets.get(7) is None
        with pytest.raises(InvalidKey):
            a.of("se\x1fcret")


async def test_tags_and_ttl_of_the_handle_count_for_all_that_it_stores(redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=PATIENT) as (a,):
        products = a.of("product", model=Product, tags=["catalog"], ttl=60)
        await products.set(1, LAMP, "acme", tags=["own"])
        await products.add(2, LAMP, "acme")
        await products.get_or_load(3, lambda: LAMP, "acme")
        await a.set("product", 4, LAMP, "acme")
        await a.invalidate_tags(["catalog"], "acme")
        assert await products.get_many([1, 2, 3, 4], "acme") == {4: LAMP}
        await products.set(1, LAMP, "acme", tags=["own"])
        await a.invalidate_tags(["own"], "acme")
        assert await products.get(1, "acme") is None
        text: Any = "catalog"
        with pytest.raises(ConfigError):
            a.of("product", tags=text)
        with pytest.raises(ValueError, match="sequence"):
            await products.set(1, LAMP, "acme", tags=text)
        with pytest.raises(ValueError, match="ttl"):
            a.of("product", ttl=0)


async def test_one_model_a_type_whoever_says_it(redis_url: str) -> None:
    cache = Cache(quick(redis_url, policies={"page": Policy(model=Other)}))
    with pytest.raises(ConfigError, match=r"cache.of\('page'\) returns .*Product.* has the model .*Other"):
        cache.of("page", model=Product)
    cache.of("page", model=Other)
    cache.of("product", model=Product)
    cache.of("product", model=Product)
    with pytest.raises(
        ConfigError, match=r"cache.of\('product'\) returns .*Other.*, and cache.of\('product'\) .*Product"
    ):
        cache.of("product", model=Other)

    with pytest.raises(ConfigError, match=r"Other.*cache.of\('product'\)"):

        @cached("product", resource_id="{number}", tenant_id="acme", cache=cache)
        async def product(number: int) -> Other:
            return Other(str(number))

    for plain in (dict, list, int, str, object, dict[str, int]):
        for data_type in ("product", "page"):
            with pytest.raises(ConfigError, match=f"cache.of.*{data_type}.* returns "):
                cache.of(data_type, model=plain)
        other = f"first {plain}"
        cache.of(other, model=plain)
        cache.of(other, model=plain)
        cache.of(other, model=Any)
        with pytest.raises(ConfigError, match=r"cache.of.* returns .*Product.*, and cache.of"):
            cache.of(other, model=Product)
    with pytest.raises(ConfigError):
        cache.of("stream", model=type(asyncio))
    numbers = cache.of("number", model=int)
    everything = cache.of("list", model=list[Product])
    async with cache:
        await numbers.set(1, 5, "acme")
        assert await numbers.get(1, "acme") == 5
        await everything.set(1, [LAMP], "acme")
        assert await everything.get(1, "acme", use_memory=False) == [LAMP]


async def test_values_that_were_there_as_dicts_come_as_the_model_once_a_handle_says_so(redis_url: str) -> None:
    """In memory, and under way: neither was decoded into it."""
    async with nodes(redis_url, 1, l2_timeout_s=PATIENT) as (a,):
        source = Source(x=LAMP)
        assert await a.get_or_load("product", 1, lambda: LAMP, "acme") == {"name": "lamp", "price": 1}
        source.hold()
        under_way = asyncio.create_task(a.get_or_load("product", "x", source.load, "acme"))
        await source.asked.wait()
        products = a.of("product", model=Product)
        joined = asyncio.create_task(products.get_or_load("x", lambda: DESK, "acme"))
        assert await products.get(1, "acme") == LAMP
        assert await products.get_or_load(1, lambda: DESK, "acme") == LAMP
        source.release()
        await under_way
        assert isinstance(await joined, Product)
        assert isinstance(await products.get("x", "acme"), Product)


# -- bound ids ---------------------------------------------------------------------------------------------------


async def test_within_binds_ids_for_every_verb(redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=PATIENT) as (a,):
        products = a.of("product", model=Product, tags=["catalog"])
        mine = products.within("acme", agent_id="a7")
        await mine.set(7, LAMP)
        await products.set(7, DESK, "acme")
        with asked(a) as counts:
            assert await mine.get(7) == await mine.get(7, "acme") == await mine.get(7, agent_id="a7") == LAMP
            assert await mine.get_or_load(7, lambda: DESK) == LAMP
            assert await products.get(7, "acme") == DESK
        assert data_calls(counts) == 0
        assert await products.get(7, "acme", "a7") == LAMP
        deeper = mine.within(conversation_id=1)
        assert await deeper.add(8, LAMP)
        assert await deeper.get_many([8]) == {8: LAMP}
        assert await products.get(8, "acme", "a7", 1) == LAMP
        assert repr(deeper) == "<typed cache of 'product', tenant_id='acme', agent_id='a7', conversation_id=1>"
        await mine.invalidate(7)
        assert await mine.get(7) is None
        assert await products.get(7, "acme") == DESK
        await a.invalidate_tags(["catalog"], "acme")
        assert await deeper.get(8) is None


async def test_an_id_that_is_bound_is_not_another_in_any_call(redis_url: str) -> None:
    """No entry of the other tenant may answer, be it in memory or not."""
    async with nodes(redis_url, 1, l2_timeout_s=PATIENT) as (a,):
        products = a.of("product", model=Product)
        mine = products.within("acme", agent_id="a7")
        await products.set(7, DESK, "other", "a7")
        await products.set(7, DESK, "acme")
        for call in (
            mine.get(7, "other"),
            mine.get_or_load(7, lambda: LAMP, "other"),
            mine.get(7, agent_id="a8"),
            mine.get_many([7], "other"),
            mine.set(7, LAMP, "other"),
            mine.add(7, LAMP, "other"),
            mine.invalidate(7, "other"),
        ):
            with pytest.raises(InvalidKey, match="gives another one"):
                await call
        with pytest.raises(InvalidKey):
            mine.within("other")
        empty: Any = ""
        with pytest.raises(InvalidKey):
            products.within(empty)
        assert await mine.get(7) is None
        assert await products.within(7).get(1, "7") is None
        with Context(tenant_id="other"):
            assert await mine.get(7) is None


# -- of the process ----------------------------------------------------------------------------------------------


async def test_a_handle_of_the_process_wide_cache_is_made_at_import_time(redis_url: str) -> None:
    products = CacheManager.of("product", model=Product)
    mine = products.within("acme")
    for handle in (products, mine):
        with pytest.raises(ConfigError, match="no cache is open"):
            await handle.get(7, "acme")
    for turn in (1, 2):
        async with lifespan(quick(redis_url, l2_timeout_s=PATIENT)) as cache:
            late = CacheManager.of("product", model=Product).within("acme")
            value = Product(name=str(turn))
            await products.set(7, value, "acme")
            with asked(cache) as counts:
                for found in (products.get(7, "acme"), mine.get(7), late.get(7)):
                    assert await found == value
            assert data_calls(counts) == 0
            assert await mine.get_or_load(8, lambda value=value: value) in (Product(name="1"), value)
        with pytest.raises(ConfigError, match="no cache is open"):
            await mine.get_or_load(7, lambda: LAMP)
    with pytest.raises(ConfigError, match=r"cache.of\('product'\)"):
        CacheManager.of("product", model=Other)
    del products, mine, late, handle, found
    gc.collect()
    assert not [each for each in CacheManager._handles if each.data_type == "product"]
    del CacheManager._models["product"]


async def test_the_log_says_once_that_a_loader_promises_what_does_not_come(redis_url: str) -> None:
    async def product(resource_id: str) -> Product | None:
        return LAMP

    class Repository:
        async def load(self, resource_id: str) -> list[Other]:
            return [Other("x")]

    async with nodes(redis_url, 1, policies={"own": Policy(model=Product)}) as (a,):
        with told("WARNING", of="says that it gives") as lines:
            for number in range(3):
                assert await a.get_or_load("product", number, product, "acme") == {"name": "lamp", "price": 1}
            assert await a.get_or_load("shelf", 1, Repository().load, "acme") == [{"name": "x"}]
            assert await a.get_or_load("shelf", 2, Repository().load, "acme") == [{"name": "x"}]
            assert await a.get_or_load("own", 1, product, "acme") == LAMP
            assert await a.get_or_load("plain", 1, lambda: 1, "acme") == 1
        assert [line.partition(" says")[0].rpartition(".")[2] for line in lines] == ["product", "load"]
        assert "a product comes as a dict, as it has no model: say cache.of('product', model=Product)" in lines[0]
        with told("WARNING", of="says that it gives") as lines:  # and the remedy is one
            assert await a.of("product", model=Product).get_or_load(1, product, "acme") == LAMP
            assert isinstance(await a.of("product", model=Product).get_or_load(9, product, "acme"), Product)
        assert lines == []


def test_it_is_no_larger_than_it_must_be() -> None:
    handle = Cache("memory://").of("x")
    assert isinstance(handle, TypedCache)
    assert not hasattr(handle, "__dict__")


async def test_what_does_not_fit_the_model_is_refused_by_set_and_given_by_a_load() -> None:
    """So it is whoever says the model: its callers have what the source gave, and no level keeps it."""
    async with Cache(quick("memory://misfit", policies={"by_policy": Policy(model=Product)})) as cache:
        misfit: Any = {"nom": "lamp"}
        for handle in (cache.of("by_handle", model=Product), cache.of("by_policy", model=Product)):
            with pytest.raises(NotSerializable):
                await handle.set(1, misfit, "acme")
            with told() as lines:
                assert await handle.get_or_load(1, lambda: misfit, "acme") == misfit
                many = await handle.get_or_load_many([1, 2], lambda ids: {1: misfit, 2: {"name": "desk"}}, "acme")
            assert many == {1: misfit, 2: DESK}
            assert any("can't be cached" in line for line in lines)
            assert cache.stats().types[handle.data_type].serialization_errors == 2
            assert await handle.get_many([1, 2], "acme") == {2: DESK}
