"""What a newcomer stumbled over once."""

from __future__ import annotations

import prometheus_client
import pytest

from cachebus import Cache, Cascade, ConfigError, InvalidKey, Settings, TenantRequired, cached
from cachebus.observe.prometheus import CacheCollector
from cachebus.testing import Faults, Fleet


async def test_a_decorated_function_never_shares_a_lost_tenant() -> None:
    """G8: None is no tenant called "None"; what no id may be is refused as by the cache itself."""
    async with Fleet(nodes=1) as fleet:
        asked: list[tuple[object, object]] = []

        @cached("prof", resource_id="{uid}", tenant_id="{tenant}", cache=fleet.caches[0])
        async def prof(uid: object, tenant: object) -> int:
            asked.append((uid, tenant))
            return len(asked)

        with pytest.raises(TenantRequired):
            await prof("u1", None)
        for bad in (None, True, 1.5, object()):
            with pytest.raises(InvalidKey, match="resource_id"):
                await prof(bad, "acme")
        assert await prof("u1", "None") == 1
        assert await prof(7, "acme") == await prof("7", "acme") == 2


async def test_a_scrape_outlives_the_cache() -> None:
    """The rest of an application's metrics must not fail because its cache is not open."""
    cache = Cache.open("memory://")
    registry = prometheus_client.CollectorRegistry()
    registry.register(CacheCollector(cache.stats))
    assert prometheus_client.generate_latest(registry) == b""
    async with cache:
        assert b"cachebus_l1_entries" in prometheus_client.generate_latest(registry)
    assert prometheus_client.generate_latest(registry) == b""


async def test_a_disabled_cache_lets_every_job_run() -> None:
    """With nothing cached there is no value in the way: a job guarded by `add` runs, rather than never."""
    async with Cache.open(Settings(url="memory://", enabled=False)) as cache:
        assert await cache.add("job_lock", "42", 1, tenant_id="acme")


def test_what_makes_no_sense_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="nodes"):
        Fleet(nodes=0)
    with pytest.raises(ValueError, match="drop"):
        Faults(drop=5)
    with pytest.raises(ConfigError, match="pairs of data type and resource id"):
        Cascade("a", to=["b"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="is empty"):
        Settings(url="")
