"""The resource id "*": all of a data type wherever something is invalidated, and refused wherever a value is named."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cachebus import Cache, Cascade, InvalidKey, get_with_cache_aside, invalidate_coordinated, lifespan
from cachebus.cascade import CascadeTable, Target
from cachebus.helpers import cached, get_counter, increment_counter, invalidate_resource_cache
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Planner
from cachebus.producers import DirectProducer
from cachebus.producers.command import parse
from tests.support.caches import quick, until
from tests.support.command import ran

INVALIDATING: dict[str, Callable[[Cache, DirectProducer], Awaitable[object]]] = {
    "invalidate": lambda c, p: c.invalidate("page", "*", "acme"),
    "delete": lambda c, p: c.delete("page", "*", "acme"),
    "invalidate_targets": lambda c, p: c.invalidate_targets([Target("page", "*")], "acme"),
    "invalidate_coordinated": lambda c, p: invalidate_coordinated("acme", "page", "*"),
    "invalidate_resource_cache": lambda c, p: invalidate_resource_cache("page", "*", "acme"),
    "a producer": lambda c, p: p.invalidate("page", "*", "acme"),
    "a cascade": lambda c, p: c.invalidate("book", 1, "acme"),
}


@pytest.mark.parametrize("verb", INVALIDATING)
async def test_all_of_the_type_goes(redis_url: str, verb: str) -> None:
    settings = quick(redis_url)
    async with lifespan(settings) as cache, Cache(settings) as other, DirectProducer(settings) as producer:
        cache.register(Cascade("book", to=[("page", "*")]))
        for number in range(3):
            await cache.set("page", number, 1, "acme")
            await cache.set("page", number, 1, "acme", agent_id="a7")
        await cache.set("page", 1, "stays", "other")
        await cache.set("book", 2, "stays", "acme")
        await INVALIDATING[verb](cache, producer)

        async def all_gone() -> bool:
            in_none = await other.get_many("page", range(3), "acme")
            return not in_none and not await other.get_many("page", range(3), "acme", agent_id="a7")

        await until(all_gone)
        assert await other.get("page", 1, "other") == "stays"
        assert await other.get("book", 2, "acme") == "stays"


async def test_one_contexts_part_of_it_goes(redis_url: str) -> None:
    async with Cache(quick(redis_url)) as cache:
        await cache.set("page", 1, "stays", "acme")
        await cache.set("page", 1, 1, "acme", agent_id="a7")
        await cache.invalidate("page", "*", "acme", agent_id="a7")
        assert await cache.get("page", 1, "acme", agent_id="a7") is None
        assert await cache.get("page", 1, "acme") == "stays"


@pytest.mark.parametrize("op", ["invalidate", "coordinated"])
def test_a_command_that_anybody_wrote(op: str) -> None:
    command = parse(f'{{"op": "{op}", "tenant_id": "acme", "data_type": "page", "resource_id": "*"}}')
    plan = command.plan(Planner(Keyspace(4), CascadeTable()))
    assert (plan.keys, plan.scopes) == ([], ["D\x1facme\x1fpage"])


async def test_in_a_guard(redis_url: str) -> None:
    async with Cache(quick(redis_url)) as cache, cache.write_guard([("page", "*")], "acme", db_timeout_s=1):
        assert not (await cache.set("page", 1, 1, "acme")).stored


NAMING: dict[str, Callable[[Cache], Awaitable[Any]]] = {
    "get": lambda c: c.get("page", "*", "acme"),
    "get_many": lambda c: c.get_many("page", [1, "*"], "acme"),
    "get_or_load": lambda c: c.get_or_load("page", "*", lambda: 1, "acme"),
    "get_with_cache_aside": lambda c: get_with_cache_aside("page", "*", "acme", lambda: 1),
    "cached": lambda c: cached("page", resource_id="{name}", tenant_id="acme")(_page)("*"),
    "set": lambda c: c.set("page", "*", 1, "acme"),
    "add": lambda c: c.add("page", "*", 1, tenant_id="acme"),
}


async def _page(name: str) -> str:
    return name


@pytest.mark.parametrize("verb", NAMING)
async def test_no_value_has_that_name(redis_url: str, verb: str) -> None:
    async with lifespan(quick(redis_url)) as cache:
        for _ in range(2):  # cold and warm
            with pytest.raises(InvalidKey, match="names all of a data type"):
                await NAMING[verb](cache)
            await cache.invalidate("page", "*", "acme")


async def test_a_counter_without_a_resource_is_no_scope(redis_url: str) -> None:
    async with lifespan(quick(redis_url)):
        assert await increment_counter("visits", "acme") == 1
        assert await get_counter("visits", "acme") == 1


async def test_the_command_line(redis_url: str, tmp_path: Any) -> None:
    async with Cache(quick(redis_url)) as cache:
        await cache.set("page", "c1|0|20", ["old"], tenant_id="acme")
        environment = {"CACHEBUS_URL": redis_url}
        status, _, errors = ran("invalidate", "page", "*", "--tenant", "acme", folder=tmp_path, env=environment)
        assert (status, errors) == (0, "")
        assert await cache.get("page", "c1|0|20", "acme", use_memory=False) is None
        status, _, errors = ran("get", "page", "*", "--tenant", "acme", folder=tmp_path, env=environment)
        assert status == 2
        assert "names all of a data type" in errors
