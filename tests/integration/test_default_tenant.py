"""Services without tenants: a default that stands where neither the call nor a Context names one."""

from __future__ import annotations

from typing import Any

import pytest

from cachebus import Cache, ConfigError, Context, Settings, TenantRequired, get_with_cache_aside, lifespan
from cachebus.producers import DirectProducer
from tests.support.caches import quick, until


async def test_every_verb_takes_it(redis_url: str) -> None:
    settings = quick(redis_url, default_tenant="main")
    async with Cache(settings) as cache, DirectProducer(settings) as producer:
        await cache.set("product", 1, "old", tags=["shelf"])
        assert await cache.get("product", 1) == "old"
        assert await cache.get("product", 1, "main") == "old"
        assert await cache.get_many("product", [1]) == {1: "old"}
        assert await cache.get_or_load("product", 1, lambda: "new") == "old"

        async def is_gone() -> bool:
            return await cache.get("product", 1) is None

        for invalidate in (
            lambda: cache.invalidate("product", 1),
            lambda: cache.invalidate_tags(["shelf"]),
            cache.invalidate_scope,
            lambda: cache.invalidate_scope(data_type="product"),
            lambda: producer.invalidate("product", 1),
            lambda: producer.invalidate_tags(["shelf"]),
            lambda: producer.invalidate_scope(data_type="product"),
        ):
            await cache.set("product", 1, "old", tags=["shelf"])
            await invalidate()
            await until(is_gone)
        async with cache.write_guard([("product", 1)], db_timeout_s=1):
            assert not (await cache.set("product", 1, "guarded")).stored
        assert await cache.increment("visits") == 1
        assert await cache.increment("visits", "main") == 2


async def test_what_is_named_counts_more(redis_url: str) -> None:
    async with Cache(quick(redis_url, default_tenant="main")) as cache:
        await cache.set("product", 1, "acme's", "acme")
        assert await cache.get("product", 1) is None
        with Context(tenant_id="acme"):
            assert await cache.get("product", 1) == "acme's"
        await cache.set("system", "limits", 1)
        assert await cache.get("system", "limits", "main") is None, "what has no tenant gets none"


async def test_without_one_the_remedy_names_it(redis_url: str) -> None:
    async with Cache(quick(redis_url)) as cache:
        with pytest.raises(TenantRequired, match="set default_tenant in the settings"):
            await cache.get("product", 1)
    for wrong in ("", "a\x1fb", "x" * 600):
        with pytest.raises(ConfigError, match="default_tenant"):
            Settings(url=redis_url, default_tenant=wrong)


async def test_a_loader_gets_the_ids_as_they_were_given(redis_url: str) -> None:
    got: list[Any] = []

    def load(resource_id: Any, tenant_id: Any) -> int:
        got.append((resource_id, tenant_id))
        return 1

    async with lifespan(quick(redis_url, default_tenant="main")) as cache:
        await cache.get_or_load("product", 7, load, 42)
        await cache.get_or_load("product", 7, load)
        await get_with_cache_aside("product", 8, 42, load)
        await get_with_cache_aside("product", 8, None, load)
    assert got == [(7, 42), (7, "main"), (8, 42), (8, "main")]
