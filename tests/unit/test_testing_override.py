"""`override_settings`: a service's own settings out of the way of its tests, and back behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cachebus import CacheManager, Cascade, ConfigError, Policy, Settings, cached, configure, declare, lifespan
from cachebus.base.definition import Definition
from cachebus.testing import FakeClock, override_settings

SERVICE = Settings(
    url="redis://prod:6379/0", namespace="shop", policies={"page": Policy(ttl_s=60), "user": Policy(ttl_s=7)}
)


@pytest.fixture(autouse=True)
def _service() -> Iterator[None]:
    """What a service says when it is imported."""
    known = dict(CacheManager._models)
    configure(SERVICE)
    yield
    CacheManager._configure(None)
    CacheManager._models.clear()
    CacheManager._models.update(known)


async def test_a_service_runs_in_memory_with_the_rest_of_its_settings() -> None:
    with override_settings(url="memory://"):
        async with lifespan() as cache:
            assert cache.settings.safe_url == "memory://"
            assert (cache.settings.namespace, cache.settings.policies) == ("shop", SERVICE.policies)
            await CacheManager.set("page", 1, "x", "acme")
            assert await CacheManager.get("page", 1, "acme") == "x"
    assert CacheManager._configured == SERVICE
    assert configure(SERVICE) is SERVICE


async def test_settings_that_a_lifespan_is_given_are_overridden_too() -> None:
    own = Settings(url="redis://other", bus="kafka", kafka_bootstrap_servers="kafka:9092", namespace="own")
    with override_settings(url="memory://", bus="redis"):
        async with lifespan(own) as cache:
            assert (cache.settings.safe_url, cache.settings.bus) == ("memory://", "redis")
            assert cache.settings.namespace == "own"


async def test_policies_are_overridden_by_their_types() -> None:
    with override_settings(url="memory://", policies={"page": {"ttl_s": 5}}), override_settings(policies={"tag": {}}):
        async with lifespan() as cache:
            assert cache.settings.policies == {"page": Policy(ttl_s=5), "user": Policy(ttl_s=7), "tag": Policy()}


async def test_what_is_said_in_the_block_is_forgotten_behind_it() -> None:
    CacheManager.decode_into("price", Policy, Definition.of(configure))
    known = dict(CacheManager._models)
    with override_settings(url="memory://"):
        assert configure("redis://elsewhere").safe_url == "memory://"
        declare(Cascade("a", to=[("b", "*")]))

        @cached("money", resource_id="{n}", tenant_id="acme")
        async def money(n: int) -> list[Policy]:
            return [Policy(retries=n)]

        assert CacheManager._models != known
        async with lifespan() as cache:
            assert cache.settings.namespace == "cachebus"
            assert (await CacheManager.invalidate("a", 1, "acme")).targets == {"a": 1, "b": 1}
    assert CacheManager._configured == SERVICE
    assert CacheManager._cascades == []
    assert CacheManager._models == known
    with pytest.raises(ConfigError, match="configure once"):
        configure("redis://elsewhere")


async def test_the_inner_of_two_wins_and_leaves_the_outer() -> None:
    inner, outer = FakeClock(7.0), FakeClock(5.0)
    with override_settings(url="memory://", namespace="outer", clock=outer):
        with override_settings(namespace="inner"):
            async with lifespan() as cache:
                assert (cache.settings.safe_url, cache.settings.namespace) == ("memory://", "inner")
                assert cache._clock is outer
        with override_settings(clock=inner):
            async with lifespan() as cache:
                assert cache._clock is inner
        async with lifespan() as cache:
            assert cache.settings.namespace == "outer"
            assert cache._clock is outer


async def test_it_is_restored_behind_an_error() -> None:
    with pytest.raises(RuntimeError, match="the test's"), override_settings(url="memory://"):
        raise RuntimeError("the test's")
    assert CacheManager._override is None
    assert CacheManager._configured == SERVICE


async def test_everything_off_means_that_each_read_loads() -> None:
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        return loads

    for enabled, expected in ((True, 1), (False, 3)):
        loads = 0
        with override_settings(url="memory://", enabled=enabled):
            async with lifespan():
                for _ in range(3):
                    await CacheManager.get_or_load("page", 1, load, "acme")
        assert loads == expected


async def test_not_while_the_cache_is_open() -> None:
    with override_settings(url="memory://"):
        async with lifespan():
            with pytest.raises(ConfigError, match="open already"), override_settings(enabled=False):
                pass
            assert CacheManager._override is not None


async def test_a_field_that_there_is_not_is_told_when_the_cache_is_opened() -> None:
    wrong: dict[str, Any] = {"urll": "memory://"}
    with override_settings(**wrong), pytest.raises(ConfigError, match="did you mean url"):
        async with lifespan():
            pass
