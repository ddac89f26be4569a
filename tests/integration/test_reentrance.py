"""A loader that waits for itself is told at once, by every way to load; the lease is free, and nothing is cached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cachebus import Cache, ConfigError, Context, Policy, cached, get_with_cache_aside, lifespan
from tests.support.caches import quick, until

POLICIES = {
    "doc": Policy(load_timeout_s=60, retries=3, retry_on=(Exception,), retry_backoff_s=60),
    "soft": Policy(soft_ttl_s=0.01),
}


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """The process-wide cache, open."""
    async with lifespan(quick(redis_url, policies=POLICIES, lease_ms=60_000)) as opened:
        yield opened


async def within(awaited: Any) -> Any:
    """Far below the policy's time limit, and its first pause."""
    return await asyncio.wait_for(awaited, 10)


@pytest.mark.parametrize("use_memory", [True, False])
async def test_its_own_key(cache: Cache, use_memory: bool) -> None:
    async def a() -> Any:
        return await cache.get_or_load("doc", "a", a, tenant_id="acme", use_memory=use_memory)

    with pytest.raises(ConfigError, match="acme:doc:a -> acme:doc:a"):
        await within(cache.get_or_load("doc", "a", a, tenant_id="acme", use_memory=use_memory))
    assert await within(cache.get_or_load("doc", "a", lambda: 1, tenant_id="acme")) == 1
    assert not cache.stats().flights


async def test_through_the_helpers_and_tasks(cache: Cache) -> None:
    """cached -> gather of get_or_load -> a task with cache-aside -> the first."""

    @cached("doc", resource_id="{name}", tenant_id="acme")
    async def page(name: str) -> Any:
        parts = [cache.get_or_load("doc", part, chapter, tenant_id="acme") for part in ("one", "two")]
        return await asyncio.gather(*parts)

    async def chapter(resource_id: str) -> Any:
        if resource_id == "one":
            return 1
        async with asyncio.TaskGroup() as group:
            task = group.create_task(get_with_cache_aside("doc", "index", "acme", index))
        return task.result()[0]

    async def index() -> Any:
        return await page("book")

    with pytest.raises((ConfigError, ExceptionGroup)) as caught:
        await within(page("book"))
    error = caught.value.exceptions[0] if isinstance(caught.value, ExceptionGroup) else caught.value
    assert isinstance(error, ConfigError)
    assert "acme:doc:book -> acme:doc:two -> acme:doc:index -> acme:doc:book" in str(error)
    assert await within(cache.get_or_load("doc", "index", lambda: 1, tenant_id="acme")) == 1


async def test_loads_that_others_began(cache: Cache) -> None:
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}
    began = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def load(resource_id: str) -> Any:
        began[resource_id].set()
        await gates[resource_id].wait()
        other = "b" if resource_id == "a" else "a"
        return await cache.get_or_load("doc", other, load, tenant_id="acme")

    callers = [asyncio.create_task(cache.get_or_load("doc", i, load, tenant_id="acme")) for i in "ab"]
    for i in "ab":
        await began[i].wait()
        gates[i].set()
    for caller in callers:
        with pytest.raises(ConfigError, match="waits for itself"):
            await within(caller)


async def test_another_tenant_or_context_is_another_key(cache: Cache) -> None:
    async def wider() -> Any:
        return await cache.get_or_load("doc", "a", lambda: "theirs", tenant_id="other")

    async def narrow() -> Any:
        return await cache.get_or_load("doc", "a", wider)

    with Context("acme"):
        assert await within(cache.get_or_load("doc", "a", narrow, agent_id="a7")) == "theirs"


async def test_a_refresh_may_ask_for_what_waits_for_nothing_of_it(cache: Cache) -> None:
    """The loader of A reads an old B, whose refresh asks for A."""
    refreshed = []

    async def b() -> Any:
        refreshed.append(await cache.get_or_load("doc", "a", a, tenant_id="acme"))
        return 2

    async def looks() -> Any:
        got = await cache.get_or_load("soft", "b", b, tenant_id="acme")
        return got if cache.stats().types["soft"].refreshes else None

    async def a() -> Any:
        return await until(looks)

    await cache.set("soft", "b", 1, tenant_id="acme")
    assert await within(cache.get_or_load("doc", "a", a, tenant_id="acme")) == 1
    await until(lambda: refreshed == [1])
