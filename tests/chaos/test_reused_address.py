"""Another server stands at the address of a primary that is gone. It is not believed, and takes no others along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from cachebus import Cache, CacheBusError, L2Unavailable
from cachebus.base.clock import monotonic
from cachebus.keys.key import Keyspace
from cachebus.l2.names import ShardNames
from cachebus.resp import slot_of
from cachebus.resp.cluster_map import AGREE_S, SLOTS
from cachebus.tools.servers.redis import EmbeddedServer, instead_of
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import nodes, past, quick, until
from tests.support.primaries import SHARDS, Town, all_is_well, names_of
from tests.support.servers import any_binary

CLUSTERED = ("cluster-enabled yes", "cluster-node-timeout 1000")


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """For tests that break it."""
    async with Town(any_binary(), replicas=0) as town:
        yield town


def url_of(*ports: int) -> str:
    """That of a Cluster, by these nodes of it."""
    return f"redis+cluster://{','.join(f'127.0.0.1:{port}' for port in ports)}"


async def is_lost(asked: EmbeddedServer) -> bool:
    """Whether it knows a primary, and not where that is."""
    return any(not primary[1] for _, _, primary, *_ in await ask(asked, "CLUSTER", "SLOTS"))


async def slots_of(server: EmbeddedServer) -> list[tuple[int, int]]:
    """The first and the last of each row of slots that are its own."""
    return [
        (start, end) for start, end, (_, port, *_), *_ in await ask(server, "CLUSTER", "SLOTS") if port == server.port
    ]


async def test_a_node_that_has_lost_its_memory_takes_away_no_other_ones_tenants(town: Town) -> None:
    """The others know it no more, and where its slots are; it knows nobody."""
    first, second, third = town.servers
    async with nodes(town.url, 1, shards=SHARDS) as (a,):
        for tenant in town.tenants:
            await a.set("config", "x", 1, tenant)
        with instead_of(first, *CLUSTERED):
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
            with instead_of(first, *CLUSTERED) as stranger:
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
        with instead_of(target, *CLUSTERED):
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
            with instead_of(first):

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


async def test_of_the_nodes_that_are_named_most_decide_which_cluster_is_ours(town: Town) -> None:
    """Two of five addresses are another Cluster's by now, wherever they stand in the URL."""
    async with ClusterGroup(any_binary(), primaries=2, replicas=0) as others, nodes(town.url, 1, shards=SHARDS) as (a,):
        ours, theirs = ([server.port for server in group.servers] for group in (town, others))
        for at in range(4):
            async with Cache(quick(url_of(*ours[:at], *theirs, *ours[at:]), shards=SHARDS)) as b:
                for tenant in town.tenants:
                    await all_is_well(a, b, tenant)
        assert [await ask(server, "DBSIZE") for server in others.servers] == [0, 0]


async def test_where_as_many_addresses_are_of_another_cluster_none_is_believed(town: Town) -> None:
    async with ClusterGroup(any_binary(), primaries=1, replicas=0) as others:
        url = url_of(town.servers[0].port, others.servers[0].port)
        with pytest.raises(L2Unavailable, match="of two Clusters"):
            async with Cache(quick(url, shards=SHARDS)):
                pass


@pytest.mark.parametrize("how", ["HARD", "SOFT"])
async def test_a_node_that_leaves_for_another_cluster_is_left(town: Town, how: str) -> None:
    """It has no keys by then, or it could not leave. The connection to it goes on, and it does all that it is asked.
    SOFT leaves it its id."""
    first, second, third = town.servers
    async with nodes(town.url, 1, shards=SHARDS) as (a,):
        await a.set("config", "x", 1, town.tenants[1])
        gone = await town.id_of(second)
        slots = [slot for start, end in await slots_of(second) for slot in range(start, end + 1)]

        async def left() -> bool:
            """What a node lays out in between keeps it."""
            await ask(second, "FLUSHALL")
            with suppress(CacheBusError):
                await ask(second, "CLUSTER", "RESET", how)
            return b"cluster_known_nodes:1\r" in await ask(second, "CLUSTER", "INFO")

        for each in (first, third):
            await ask(each, "CLUSTER", "FORGET", gone)
        await until(left)
        await ask(second, "CLUSTER", "ADDSLOTS", *range(SLOTS))

        async def is_told() -> bool:
            try:
                await a.set("config", "x", 1, town.tenants[1])
            except L2Unavailable as error:
                return "a node of another Cluster" in str(error)
            return False

        await until(is_told)
        await ask(first, "CLUSTER", "ADDSLOTS", *slots)

        async def served() -> bool:
            with suppress(CacheBusError):
                async with Cache(quick(town.url, shards=SHARDS)) as b:
                    for tenant in town.tenants:
                        await all_is_well(a, b, tenant)
                        await all_is_well(b, a, tenant)
                return True
            return False

        await until(served, within_s=30.0)


async def test_those_that_are_slow_at_a_start_are_waited_for(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of five addresses are another Cluster's, and answer first."""
    for module in ("asked_route", "cluster_map"):
        monkeypatch.setattr(f"cachebus.resp.{module}.ASK_S", 4.0)  # or a busy machine is as slow
    async with ClusterGroup(any_binary(), primaries=2, replicas=0) as others, nodes(town.url, 1, shards=SHARDS) as (a,):
        ours, theirs = ([server.port for server in group.servers] for group in (town, others))
        await ask(others.servers[1], "CONFIG", "RESETSTAT")
        for server in town.servers:
            server.pause()
        cache = Cache(quick(url_of(*theirs, *ours), shards=SHARDS))
        starting = asyncio.create_task(cache.__aenter__())

        async def asked() -> bool:
            return b"slots" in await ask(others.servers[1], "INFO", "commandstats")

        try:
            await until(asked)
            await past(monotonic() + 1.5 * AGREE_S)
        finally:
            for server in town.servers:
                server.resume()
        try:
            b = await starting
            for tenant in town.tenants:
                await all_is_well(a, b, tenant)
        finally:
            await cache.__aexit__(None, None, None)
