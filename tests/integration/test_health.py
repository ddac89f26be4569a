"""What a cache says of itself while parts of it are away."""

from __future__ import annotations

import asyncio

from cachebus import Cache, Health
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, quick, until
from tests.support.primaries import Town
from tests.support.servers import any_binary

WELL = Health(serving=True, coherent=True)


def says(cache: Cache, text: str) -> bool:
    """Whether it names this among what is not as it should be."""
    return any(text in told for told in cache.health().degraded)


async def test_an_outage_of_l2_and_its_end(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, pending_max=10) as (cache,):
        assert cache.health() == WELL
        assert await asyncio.to_thread(cache.health) == WELL, "from any thread"
        own_server.pause()
        await until(lambda: not cache.health().coherent)
        await until(lambda: says(cache, "L2 is out of reach for all shards: "))
        assert cache.health().serving
        assert await cache.get_or_load("config", "x", lambda: 1, "acme") == 1
        waiting = asyncio.create_task(cache.invalidate("config", "x", "acme"))
        await until(lambda: says(cache, "1 invalidation waits for L2"))
        own_server.resume()
        await waiting
        await until(lambda: cache.health() == WELL)


async def test_a_primary_of_several_that_is_away() -> None:
    async with Town(any_binary(), replicas=0) as town, Cache(quick(town.url)) as cache:
        assert cache.health() == WELL
        town.servers[0].kill()
        await until(lambda: not cache.health().coherent)
        await until(lambda: says(cache, f" of {cache.settings.shards} shards: "))
        assert cache.health().serving
        assert cache.ready()


async def test_a_disabled_cache_is_well() -> None:
    async with Cache(quick("memory://", enabled=False)) as cache:
        assert cache.health() == WELL
