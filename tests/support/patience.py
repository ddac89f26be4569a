"""Reads of values that have expired."""

from __future__ import annotations

import asyncio
from typing import Any

from cachebus import Cache, Policy
from tests.support.caches import Source, parts, until

SAFE = Policy(ttl_s=10, fail_safe_s=1000, retries=0, fail_safe_throttle_s=10)


SOFT = Policy(ttl_s=100, soft_ttl_s=10, fail_safe_s=1000, retries=0, fail_safe_throttle_s=10)


async def read(cache: Cache, source: Source, data_type: str = "config", **more: Any) -> Any:
    return await cache.get_or_load(data_type, "x", source.load, tenant_id="acme", **more)


def reading(cache: Cache, source: Source, data_type: str = "config", **more: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(read(cache, source, data_type, **more))


async def settled(*caches: Cache) -> None:
    """Wait for loads in the background."""
    await until(lambda: not any(len(parts(cache).loads.flights) for cache in caches))


async def expired(cache: Cache, data_type: str) -> None:
    """Wait until neither level gives the value any more."""

    async def is_gone() -> bool:
        return await cache.get(data_type, "x", tenant_id="acme") is None

    await until(is_gone)
