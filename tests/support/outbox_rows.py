"""Rows of an outbox among which some are odd."""

from __future__ import annotations

from cachebus import Cache
from tests.support.caches import until
from tests.support.outbox import invalidation

GOOD = invalidation("good")


async def gone(cache: Cache) -> None:
    """Until the good row was applied."""

    async def absent() -> bool:
        return await cache.get("config", "good", "acme") is None

    await until(absent)
