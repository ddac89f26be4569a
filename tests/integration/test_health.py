"""What a cache says of itself while parts of it are away."""

from __future__ import annotations

import asyncio

import pytest

from cachebus import Cache, Health, L2Unavailable
from cachebus.assembly.figures import OFF
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import nodes, parts, quick, until
from tests.support.logs import told
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


async def test_a_bus_that_is_away_while_l2_is_there(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1) as (cache,):
        assert cache.health() == WELL
        assert own_server.command("ACL", "SETUSER", "default", "-subscribe") == "+OK"
        assert own_server.command("CLIENT", "KILL", "TYPE", "pubsub").startswith(":")
        await until(lambda: says(cache, "bus is out of reach for all shards: "))
        assert (cache.health().serving, cache.health().coherent) == (True, True)
        assert own_server.command("ACL", "SETUSER", "default", "+subscribe") == "+OK"
        await until(lambda: cache.health() == WELL)


async def test_a_bus_is_missed_from_the_moment_that_it_is_lost() -> None:
    async with Cache(quick("memory://")) as cache:
        assert cache.health() == WELL
        await parts(cache).bus.close()
        assert says(cache, "bus does not carry all events of all shards: it is not connected: ")


async def test_a_disabled_cache_answers_and_says_that_nobody_hears_of_its_writes() -> None:
    with told("WARNING") as lines:
        async with Cache(quick("memory://", enabled=False)) as cache:
            health = cache.health()
            assert (health.serving, health.coherent, cache.ready()) == (True, True, True)
            assert health.degraded == (OFF,)
    assert lines == [OFF]


async def test_a_bus_that_refuses_and_its_end(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1) as (cache,):
        assert cache.health() == WELL
        await ask(own_server, "ACL", "SETUSER", "default", "-subscribe")
        await ask(own_server, "CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: says(cache, "bus is out of reach"))
        assert cache.health().coherent
        await ask(own_server, "ACL", "SETUSER", "default", "+subscribe")
        await until(lambda: cache.health() == WELL)


def test_an_event_loop_that_is_stopped_and_one_that_has_ended() -> None:
    loop = asyncio.new_event_loop()
    cache = Cache(quick("memory://"))
    loop.run_until_complete(cache.__aenter__())
    health = cache.health()
    assert (health.serving, health.coherent) == (False, False)
    assert health.degraded == (
        "the event loop that opened this cache is stopped, and until it runs nothing is answered",
    )
    stats = cache.stats()
    assert (cache.ready(), stats.l2_connected, stats.bus_connected) == (False, False, False)
    loop.run_until_complete(parts(cache).listening.heartbeat.stop())
    loop.close()
    (said, *_) = cache.health().degraded
    assert said == "the event loop that opened this cache has ended, and with it this cache: nothing is answered"
    stats = cache.stats()
    assert (cache.health().serving, stats.l2_connected, stats.bus_connected) == (False, False, False)


async def test_a_server_that_merely_hangs_is_not_taken_for_one_that_speaks_tls(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1) as (cache,):
        own_server.pause()
        await until(lambda: not cache.stats().l2_connected)
        with pytest.raises(L2Unavailable) as raised:
            await parts(cache).store.reach(0)
        own_server.resume()
        assert "did not answer" in str(raised.value)
        assert "rediss" not in str(raised.value)
