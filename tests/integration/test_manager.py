"""The process-wide cache: configured once, opened by a lifespan, called as existing services call it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import cachebus
from cachebus import (
    Cache,
    CacheManager,
    Cascade,
    ConfigError,
    Context,
    L2Unavailable,
    Settings,
    configure,
    current_cache,
    declare,
    lifespan,
)
from cachebus.tools.servers.redis import free_port
from tests.support.caches import asked, data_calls, nodes, quick

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process() -> Iterator[None]:
    yield
    assert CacheManager._cache is None
    CacheManager._configured = None
    CacheManager._cascades.clear()


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """The process-wide cache, open."""
    async with lifespan(quick(redis_url)) as opened:
        yield opened


async def test_the_call_shapes_of_existing_services(cache: Cache) -> None:
    assert current_cache() is cache
    await CacheManager.set("config", "limits", {"rpm": 1}, "acme", "a", "v", "c", 60)
    assert await CacheManager.get("config", "limits", "acme", "a", "v", "c", True, True) == {"rpm": 1}
    assert await CacheManager.get("config", "limits", "acme", "a", "v", "c", False, False) == {"rpm": 1}
    assert await CacheManager.get("config", "limits", "acme") is None
    assert await CacheManager.get("config", "limits", tenant_id="acme", search_hierarchy=True, use_memory=True) is None
    await CacheManager.set("config", "wide", 2, "acme", ttl=CacheManager.ttl_permanent)
    assert await CacheManager.get("config", "wide", "acme", "a", "v", "c", True) == 2
    await CacheManager.delete("config", "limits", "acme", "a", "v", "c")
    assert await CacheManager.get("config", "limits", "acme", "a", "v", "c") is None
    await CacheManager.invalidate("config", "wide", "acme")
    assert await CacheManager.get("config", "wide", "acme") is None
    assert await CacheManager.set_if_not_exists("job", "job_lock:42", "me", 60, "acme") is True
    assert await CacheManager.set_if_not_exists("job", "job_lock:42", "you", ttl=60, tenant_id="acme") is False
    assert await CacheManager.get("job", "job_lock:42", "acme") == "me"
    ttls = CacheManager.ttl_short, CacheManager.ttl_standard, CacheManager.ttl_extended, CacheManager.ttl_permanent
    assert ttls == (300, 3600, 86400, float("inf"))


async def test_the_other_verbs_are_the_caches_too(cache: Cache) -> None:
    await CacheManager.set("config", "x", 1, tenant_id="acme", tags=["t"])
    assert await CacheManager.get_many("config", ["x", "y"], tenant_id="acme") == {"x": 1}
    assert await CacheManager.get_or_load("config", "y", lambda: 2, tenant_id="acme") == 2
    await CacheManager.invalidate_tags(["t"], tenant_id="acme")
    assert await CacheManager.get_many("config", ["x", "y"], tenant_id="acme") == {"y": 2}
    await CacheManager.invalidate_scope("acme")
    assert await CacheManager.get_many("config", ["x", "y"], tenant_id="acme") == {}
    with asked(cache) as counts:
        await CacheManager.set("config", "x", 1, "acme")
        assert [await CacheManager.get("config", "x", "acme") for _ in range(3)] == [1] * 3
    assert data_calls(counts) == 1


async def test_a_subclass_or_an_instance_calls_the_same(cache: Cache) -> None:
    class Ours(CacheManager):
        pass

    await Ours.set("config", "x", 1, "acme")
    assert await Ours().get("config", "x", "acme") == 1
    assert await CacheManager().get("config", "x", "acme") == 1


async def test_the_ambient_tenant_is_known_here_too(cache: Cache) -> None:
    with Context(tenant_id="acme"):
        await CacheManager.set("config", "x", 1)
        assert await CacheManager.get("config", "x") == 1
    assert await CacheManager.get("config", "x", "acme") == 1


VERBS: dict[str, tuple[Any, ...]] = {
    "get": ("config", "x", "acme"),
    "get_many": ("config", ["x"], "acme"),
    "set": ("config", "x", 1, "acme"),
    "get_or_load": ("config", "x", lambda: 1, "acme"),
    "delete": ("config", "x", "acme"),
    "invalidate": ("config", "x", "acme"),
    "invalidate_scope": ("acme",),
    "invalidate_tags": (["t"], "acme"),
    "set_if_not_exists": ("config", "x", 1, None, "acme"),
}
HELPERS: dict[str, tuple[Any, ...]] = {
    "get_with_cache_aside": ("config", "x", "acme"),
    "invalidate_coordinated": ("acme", "config", "x"),
    "invalidate_resource_cache": ("config", "x", "acme"),
    "increment_counter": ("hits", "acme"),
    "get_counter": ("hits", "acme"),
    "track_cache_metrics": ("config", "acme", "hit"),
}


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("name", [*VERBS, *HELPERS])
async def test_before_a_cache_is_open_every_verb_says_what_to_do(name: str, configured: bool) -> None:
    if configured:
        configure("memory://")
    call = getattr(CacheManager, name) if name in VERBS else getattr(cachebus, name)
    with pytest.raises(ConfigError, match=r"configure.*lifespan"):
        await call(*(VERBS | HELPERS)[name])


@pytest.mark.parametrize("name", VERBS)
async def test_a_verb_that_was_kept_from_before_is_that_of_whichever_cache_is_open(name: str) -> None:
    kept = getattr(CacheManager, name)
    for url in ("memory://kept-one", "memory://kept-other"):
        async with lifespan(url) as cache:
            await kept(*VERBS[name])
            assert await cache.get("config", "x", "acme") == (1 if "set" in name or "load" in name else None)
        with pytest.raises(ConfigError, match=r"configure.*lifespan"):
            await kept(*VERBS[name])


async def test_before_a_cache_is_open_the_sync_ones_say_it_too() -> None:
    for call in (current_cache, lambda: cachebus.serialize_for_cache(1, "config")):
        with pytest.raises(ConfigError, match=r"configure.*lifespan"):
            call()
    with pytest.raises(ConfigError, match=r"configure.*lifespan"):
        cachebus.deserialize_from_cache(b"\x01\x01", "config")


async def test_after_the_lifespan_the_verbs_are_closed_again(redis_url: str) -> None:
    async with lifespan(quick(redis_url)):
        await CacheManager.set("config", "x", 1, "acme")
    with pytest.raises(ConfigError, match="lifespan"):
        await CacheManager.get("config", "x", "acme")
    async with lifespan(quick(redis_url)):
        assert await CacheManager.get("config", "x", "acme") == 1


async def test_configure_then_lifespan(redis_url: str) -> None:
    settings = quick(redis_url)
    assert configure(settings) == settings
    for _ in range(2):
        async with lifespan() as cache:
            assert cache.settings == settings

    async def application(scope: Any, receive: Any, send: Any) -> None:
        """As FastAPI's is."""

    async with lifespan(application) as state:
        assert state["cache"].settings == settings
    async with lifespan(settings) as cache:
        assert cache.settings == settings


async def test_configuring_the_same_again_is_harmless_and_others_raise(redis_url: str) -> None:
    configure(redis_url)
    configure(redis_url)
    configure(Settings(url=redis_url))
    with pytest.raises(ConfigError, match="configure once") as caught:
        configure("redis://:hunter2@elsewhere:6379/3")
    assert "elsewhere:6379/3" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="configure once"):
        async with lifespan("redis://elsewhere:6379/0"):
            pass
    async with lifespan():
        await CacheManager.set("config", "x", 1, "acme")


async def test_one_at_a_time(cache: Cache, redis_url: str) -> None:
    with pytest.raises(ConfigError, match="open already"):
        async with lifespan():
            pass
    await CacheManager.set("config", "x", 1, "acme")


async def test_a_lifespan_that_fails_to_open_can_be_tried_again(redis_url: str) -> None:
    with pytest.raises(L2Unavailable):
        async with lifespan(f"redis://127.0.0.1:{free_port()}/0"):
            pass
    async with lifespan(quick(redis_url)):
        await CacheManager.set("config", "x", 1, "acme")
    with pytest.raises(RuntimeError, match="the application's"):
        async with lifespan(quick(redis_url)):
            raise RuntimeError("the application's")
    async with lifespan(quick(redis_url)):
        assert await CacheManager.get("config", "x", "acme") == 1


async def test_configured_by_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEBUS_URL", redis_url)
    async with lifespan() as cache:
        assert cache.settings.url.get_secret_value() == redis_url
    monkeypatch.setenv("CACHEBUS_ENABLED", "0")
    async with lifespan():
        assert (await CacheManager.set("config", "x", 1, "acme")).stored is False
        assert await CacheManager.get("config", "x", "acme") is None
        value, metrics = await cachebus.get_with_cache_aside("config", "x", "acme", lambda: 2)
        assert (value, metrics["source"]) == (2, "database")


async def test_a_bad_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEBUS_URL", "http://x")
    with pytest.raises(ConfigError, match="redis://"):
        configure()
    with pytest.raises(ConfigError, match="URL"):
        configure(7)  # type: ignore[arg-type]


async def test_declared_cascades_are_followed_by_every_path(redis_url: str) -> None:
    declare(Cascade("document", to=[("embedding", "doc:{resource_id}")]))
    async with lifespan(quick(redis_url)):
        declare(Cascade("embedding", to=[("query_result", "*")]))
        for call in (
            lambda: CacheManager.invalidate("document", "7", "acme"),
            lambda: CacheManager.delete("document", "7", "acme"),
            lambda: cachebus.invalidate_coordinated("acme", "document", "7"),
            lambda: cachebus.invalidate_resource_cache("document", "7", "acme"),
        ):
            await CacheManager.set("embedding", "doc:7", 1, "acme")
            await CacheManager.set("query_result", "q", 1, "acme")
            await call()
            assert await CacheManager.get("embedding", "doc:7", "acme") is None
            assert await CacheManager.get("query_result", "q", "acme") is None
    async with lifespan(quick(redis_url)):
        receipt = await CacheManager.invalidate("document", "7", "acme")
        assert dict(receipt.targets) == {"document": 1, "embedding": 1, "query_result": 1}


@pytest.mark.parametrize("open_already", [False, True])
async def test_a_cycle_is_refused_when_it_is_declared_and_not_kept(redis_url: str, open_already: bool) -> None:
    declare(Cascade("a", to=[("b", "*")]))
    if open_already:
        async with lifespan(quick(redis_url)):
            with pytest.raises(ConfigError, match="cycle"):
                declare(Cascade("b", to=[("a", "*")]))
    else:
        with pytest.raises(ConfigError, match="cycle"):
            declare(Cascade("b", to=[("a", "*")]))
    async with lifespan(quick(redis_url)):
        await CacheManager.invalidate("a", "x", "acme")


async def test_it_shares_with_caches_that_are_passed_around(cache: Cache, redis_url: str) -> None:
    async with nodes(redis_url, 1) as (other,):
        await CacheManager.set("config", "x", 1, "acme")
        assert await other.get("config", "x", tenant_id="acme") == 1
        receipt = await other.set("config", "x", 2, tenant_id="acme")
        assert await CacheManager.get("config", "x", "acme", after=receipt) == 2


async def test_another_loop_is_told(cache: Cache) -> None:
    def elsewhere() -> None:
        with pytest.raises(ConfigError, match="event loop"):
            asyncio.run(CacheManager.get("config", "y", "acme"))

    await asyncio.to_thread(elsewhere)


def test_importing_it_connects_to_nothing_and_is_quick() -> None:
    code = "import asyncio, cachebus, sys; print(sorted(m for m in ('aiokafka', 'numpy', 'rich') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
