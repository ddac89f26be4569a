"""A primary whose whole machine stands still, and wakes beside the one that was promoted in its place.

1. The primary stands still, and so does its network: that its replicas leave does not reach it.
2. One of them is promoted, and the other follows that one.
3. The primary wakes. By its own count, up to a second old, its replicas keep up, so it writes: whoever knows of no
   other primary would be given receipts and leases by it.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from cachebus import CacheBusError
from cachebus.base.clock import monotonic
from cachebus.l2.names import ShardNames
from cachebus.producers import DirectProducer
from cachebus.resp import Address
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.verify.target.group import grouped
from tests.support.caches import PATIENCE_S, past, quick, until
from tests.support.replicas import led
from tests.support.servers import any_binary

TENANT = "acme"
FROZEN_S = 4.2
"""Longer than a replica may be silent: how long it has been is told in whole seconds."""


async def test_a_primary_that_wakes_beside_another_confirms_nothing() -> None:
    with ExitStack() as stack:
        first, second, third = await led(stack, 2, "min-replicas-to-write 1")
        async with Proxy(dialer(Address(HOST, first.port))) as network:
            for replica in (second, third):
                await ask(replica, "REPLICAOF", HOST, network.port)
            await until(lambda: keeping_up(first))
            async with DirectProducer(quick(first.url)) as producer:
                await producer.invalidate("config", "x", tenant_id=TENANT)
            await counted(first)
            first.pause()
            network.hold()
            frozen_s = monotonic()
            await ask(second, "REPLICAOF", "NO", "ONE")
            await ask(third, "REPLICAOF", HOST, second.port)
            await past(frozen_s + FROZEN_S)
            first.resume()
            with pytest.raises(CacheBusError, match="NOREPLICAS it has not heard from 2 of 2 replicas"):
                async with DirectProducer(quick(first.url)) as producer:
                    await producer.invalidate("config", "x", tenant_id=TENANT)


async def test_a_primary_of_a_cluster_that_wakes_beside_another_confirms_nothing() -> None:
    """There it soon refuses all, as it misses the others. But what has come meanwhile it carries out first."""
    async with grouped("cluster", any_binary(), "cachebus", seed=2) as server:
        group, names = server.group, ShardNames("cachebus", 0)
        assert group is not None
        primary = await group.primary(names)
        assert primary is not None
        await until(lambda: keeping_up(primary, 1))
        async with DirectProducer(quick(primary.url, l2_timeout_s=PATIENCE_S)) as producer:
            await producer.invalidate("config", "x", tenant_id=TENANT)
            await counted(primary)
            primary.pause()
            for network in group.network_of(primary):
                network.hold()
            frozen_s = monotonic()
            late = asyncio.create_task(producer.invalidate("config", "x", tenant_id=TENANT))
            await group.promoted(names, primary)
            await past(frozen_s + FROZEN_S)
            primary.resume()
            with pytest.raises(CacheBusError, match="NOREPLICAS it has not heard from 1 of 1 replicas"):
                await late


async def keeping_up(primary: EmbeddedServer, replicas: int = 2) -> bool:
    """Whether so many replicas do, by its own count."""
    text: bytes = await ask(primary, "INFO", "replication")
    return text.count(b"state=online") == replicas and b"min_slaves_good_slaves:%d" % replicas in text


async def counted(primary: EmbeddedServer) -> None:
    """Until it has just looked how its replicas keep up: then it pings them. For a second it does not look again."""

    async def written() -> bytes:
        text: bytes = await ask(primary, "INFO", "replication")
        return text.partition(b"master_repl_offset:")[2].split()[0]

    before = await written()

    async def moved() -> bool:
        return await written() != before

    await until(moved)
