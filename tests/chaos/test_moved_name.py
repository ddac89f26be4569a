"""A fixed name or address that is moved to another server, as a cloud's primary endpoint, a virtual IP or a proxy in
front of the primary: connections that there are stay where they were, on what is a replica now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest

from cachebus import CacheBusError, L2Unavailable
from cachebus.base.clock import monotonic
from cachebus.producers import DirectProducer
from cachebus.resp import Address
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import nodes, parts, past, quick, until
from tests.support.replicas import led

WHERE = {"tenant_id": "acme"}


async def done(call: Callable[[], Awaitable[object]]) -> None:
    """Until it is."""

    async def succeeds() -> bool:
        try:
            await call()
        except CacheBusError:
            return False
        return True

    await until(succeeds)


async def test_who_is_still_on_the_old_primary_comes_to_the_new_one() -> None:
    with ExitStack() as stack:
        first, second = await led(stack, 1)
        leads_to = [first]

        async def dial(protocol: Callable[[], asyncio.Protocol]) -> object:
            return await dialer(Address(HOST, leads_to[0].port))(protocol)

        async with Proxy(dial) as name:
            url = f"redis://{HOST}:{name.port}/0"
            async with DirectProducer(quick(url)) as producer, nodes(url, 1) as (cache,):
                await done(lambda: producer.invalidate("config", "y", **WHERE))
                await until(cache.ready)
                leads_to[0], before = second, parts(cache).node.shards[0].epoch
                await ask(second, "REPLICAOF", "NO", "ONE")
                await ask(first, "REPLICAOF", HOST, second.port)
                await until(lambda: parts(cache).node.shards[0].epoch != before)
                await until(cache.ready)
                await done(lambda: producer.invalidate("config", "z", **WHERE))
                await until(lambda: parts(cache).bus.connected)
                async with nodes(second.url, 1) as (other,):
                    applied, missed = parts(cache).node.shards[0].applied, cache.stats().catch_ups
                    await done(lambda: other.invalidate("config", "x", **WHERE))
                    await until(lambda: parts(cache).node.shards[0].applied > applied)
                    assert cache.stats().catch_ups == missed, "it listens there, too"


async def test_while_it_leads_to_a_replica_attempts_are_paced() -> None:
    with ExitStack() as stack:
        first, second = await led(stack, 1)
        async with nodes(first.url, 1) as (cache,):
            await until(cache.ready)
            await ask(first, "REPLICAOF", HOST, second.port)
            await until(lambda: cache.stats().reconnects >= 4)
            began_s, opened = monotonic(), cache.stats().reconnects
            await past(began_s + 3)
            assert cache.stats().reconnects - opened < 20
            await ask(first, "REPLICAOF", "NO", "ONE")
            await until(cache.ready)


async def test_a_replica_that_takes_writes_is_no_primary_either() -> None:
    """What is written there its primary never hears of, nor do the nodes there."""
    with ExitStack() as stack:
        first, second = await led(stack, 1, "replica-read-only no")
        async with nodes(first.url, 1) as (a,):
            await a.set("config", "x", "old", **WHERE)
            with pytest.raises(L2Unavailable, match="READONLY"):
                async with nodes(second.url, 1):
                    raise AssertionError("it must not start")
            with pytest.raises(L2Unavailable, match="READONLY"):
                async with DirectProducer(quick(second.url)):
                    raise AssertionError("nor may it")
            await ask(second, "REPLICAOF", "NO", "ONE")
            await ask(first, "REPLICAOF", HOST, second.port)
            await until(lambda: not a.ready(), within_s=30.0)
            with pytest.raises(CacheBusError):
                await a.set("config", "x", "new", **WHERE)
