"""Another server stands at the address of a primary that is gone. It is not believed, and takes no others along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import pytest

from cachebus import Cache, CacheBusError, L2Unavailable
from cachebus.keys.key import Keyspace
from cachebus.l2.names import ShardNames
from cachebus.resp import slot_of
from cachebus.resp.cluster_map import SLOTS
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import nodes, quick, until
from tests.support.primaries import SHARDS, Town, all_is_well, names_of
from tests.support.servers import any_binary

CLUSTERED = ("cluster-enabled yes", "cluster-node-timeout 1000")


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """For tests that break it."""
    async with Town(any_binary(), replicas=0) as town:
        yield town


@contextmanager
def instead(gone: EmbeddedServer, *conf: str) -> Iterator[EmbeddedServer]:
    """An empty server at the place of one that is killed."""
    gone.kill()
    server = EmbeddedServer(any_binary(), port=gone.port, conf=conf)
    with server.start():
        yield server


async def is_lost(asked: EmbeddedServer) -> bool:
    """Whether it knows a primary, and not where that is."""
    return any(not primary[1] for _, _, primary, *_ in await ask(asked, "CLUSTER", "SLOTS"))


async def test_a_node_that_has_lost_its_memory_takes_away_no_other_ones_tenants(town: Town) -> None:
    """The others know it no more, and where its slots are; it knows nobody."""
    first, second, third = town.servers
    async with nodes(town.url, 1, shards=SHARDS) as (a,):
        for tenant in town.tenants:
            await a.set("config", "x", 1, tenant)
        with instead(first, *CLUSTERED):
            await until(lambda: is_lost(third))
            async with Cache(quick(town.url, shards=SHARDS)) as b:
                for tenant in town.tenants[1:]:
                    await all_is_well(a, b, tenant)
                second.pause()
                await until(lambda: not a.stats().l2_connected)
                with pytest.raises(CacheBusError):
                    await a.set("config", "x", 1, town.tenants[1])
                second.resume()

                async def back() -> bool:
                    with suppress(CacheBusError):
                        await all_is_well(a, b, town.tenants[1])
                        return True
                    return False

                await until(back)
                with pytest.raises(L2Unavailable):
                    await b.set("config", "x", 1, town.tenants[0])


@pytest.mark.parametrize("shards", [1, SHARDS])
async def test_a_node_of_another_cluster_is_not_taken_for_the_primary_that_was_there(shards: int) -> None:
    """That one has all slots, and does all that it is asked."""
    async with ClusterGroup(any_binary(), primaries=3, replicas=1) as group:
        names = ShardNames("cachebus", 0)
        first = await group.primary_of(names.log)
        roles = [(server, await ask(server, "ROLE")) for server in group.servers]
        replica = next(server for server, role in roles if role[0] == b"slave" and role[2] == first.port)
        tenant = next(t for t in (f"t{i}" for i in range(1000)) if not Keyspace(shards).key("config", "x", t).shard)
        async with nodes(group.url, 1, shards=shards) as (a,):
            await a.set("config", "x", "old", tenant)
            with instead(first, *CLUSTERED) as stranger:
                await ask(stranger, "CLUSTER", "ADDSLOTS", *range(SLOTS))
                await until(lambda: is_lost(group.servers[2] if first is not group.servers[2] else group.servers[1]))
                await ask(replica, "CLUSTER", "FAILOVER", "TAKEOVER")  # with its address known to nobody it has no vote

                async def served() -> bool:
                    with suppress(CacheBusError):
                        async with Cache(quick(group.url, shards=shards)) as b:
                            await all_is_well(a, b, tenant)
                            await all_is_well(b, a, tenant)
                        return True
                    return False

                await until(served, within_s=30.0)


async def test_a_cluster_whose_nodes_are_named_otherwise_by_now_is_the_same(town: Town) -> None:
    async with nodes(town.url, 2, shards=SHARDS) as (a, b):
        for server in town.servers:
            await ask(server, "CONFIG", "SET", "cluster-announce-hostname", "localhost")
            await ask(server, "CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")
        await ask(town.servers[0], "CLIENT", "KILL", "TYPE", "normal")
        await ask(town.servers[0], "CLIENT", "KILL", "TYPE", "pubsub")

        async def served() -> bool:
            with suppress(CacheBusError):
                for tenant in town.tenants:
                    await all_is_well(a, b, tenant)
                return True
            return False

        await until(served)


async def test_a_slot_whose_target_has_lost_its_memory_fails_and_holds_up_nothing(town: Town) -> None:
    """ASK names port 0 then."""
    source, target, _ = town.servers
    names = names_of(town.tenants[0])
    slot = slot_of(names.log)
    async with nodes(town.url, 1, shards=SHARDS) as (a,):
        await a.set("config", "x", 1, town.tenants[0])
        await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await town.id_of(source))
        await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await town.id_of(target))
        with instead(target, *CLUSTERED):
            await until(lambda: is_lost(source))
            while keys := await ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):  # the part that had moved
                for key in keys:
                    await ask(source, "DEL", key.decode(errors="surrogateescape"))
            with pytest.raises(L2Unavailable, match=r"ASK [0-9]+ :0"):
                await ask(source, "GET", names.meta)
            async with asyncio.timeout(5.0):
                with pytest.raises(CacheBusError):
                    await a.set("config", "x", 2, town.tenants[0])
            await a.set("config", "x", 2, town.tenants[2])


async def test_a_server_of_no_cluster_is_not_taken_for_the_primary_that_was_there() -> None:
    """It does all that it is asked. Its shards are served elsewhere by then."""
    async with ClusterGroup(any_binary(), primaries=3, replicas=1) as group:
        first = group.servers[0]
        shards = Keyspace(SHARDS)
        for tenant in (f"t{i}" for i in range(1000)):
            log = ShardNames("cachebus", shards.key("config", "x", tenant).shard).log
            if await group.primary_of(log) is first:
                break
        async with nodes(group.url, 2, shards=SHARDS) as (a, b):
            await a.set("config", "x", "old", tenant)
            assert await b.get("config", "x", tenant) == "old"
            with instead(first):

                async def promoted() -> bool:
                    return await group.primary_of(log, but=first) is not first

                await until(promoted)

                async def served() -> bool:
                    with suppress(CacheBusError):
                        async with Cache(quick(group.url, shards=SHARDS)) as c:
                            for cache in (a, b):
                                await all_is_well(c, cache, tenant)
                                await all_is_well(cache, c, tenant)
                        return True
                    return False

                await until(served)
