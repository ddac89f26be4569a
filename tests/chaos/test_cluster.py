"""A Redis Cluster: primaries that die, slots that move under load, scripts that one server has forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from cachebus import Cache, ConfigError, L2Unavailable, Settings
from cachebus.base.clock import monotonic
from cachebus.l2.names import ShardNames
from cachebus.producers.direct import DirectProducer
from cachebus.resp import slot_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import D_S, heard, key_of, nodes, parts, past, quick, until
from tests.support.servers import KINDS, Kind, any_binary, binary_of
from tests.support.workload import live_through

TENANT = "acme"


@pytest.fixture
async def group() -> AsyncIterator[ClusterGroup]:
    """Three primaries, a replica each, for tests that break them."""
    async with ClusterGroup(any_binary()) as group:
        yield group


def names_of(cache: Cache, tenant: str = TENANT) -> ShardNames:
    """The names of the tenant's shard."""
    shard = key_of(cache, "config", "x", tenant).shard
    return ShardNames(cache.settings.namespace, shard)


async def others(group: ClusterGroup, known: EmbeddedServer) -> list[EmbeddedServer]:
    """The primaries but this one."""
    servers = [server for server in group.servers if server is not known]
    return [server for server in servers if (await ask(server, "ROLE"))[0] == b"master"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_everything_works_on_every_kind(kind: Kind) -> None:
    """Tenants on all the primaries; 6.2 has no sharded pub/sub and does without."""
    async with ClusterGroup(binary_of(kind)) as group, nodes(group.url, 2) as (a, b):
        tenants = [f"t{i}" for i in range(30)]
        used = {(await group.primary_of(names_of(a, tenant).log)).port for tenant in tenants}
        assert len(used) == 3
        for tenant in tenants:
            receipt = await a.set("config", "x", tenant, tenant_id=tenant, tags=["tag"])
            assert await b.get("config", "x", tenant_id=tenant, after=receipt) == tenant
        both = await asyncio.gather(
            *(c.get("config", "x", tenant_id=t, use_memory=False) for c in (a, b) for t in tenants)
        )
        assert both == [*tenants, *tenants], "of one loop tick, and of many slots"
        assert await b.get_many("config", ["x", "y"], tenant_id="t3") == {"x": "t3"}
        await heard([b], *[await a.invalidate_tags(["tag"], tenant_id=tenant) for tenant in tenants])
        assert [await b.get("config", "x", tenant_id=tenant) for tenant in tenants] == [None] * 30
        assert await b.get_or_load("config", "x", lambda: "loaded", tenant_id="t5") == "loaded"
        assert await a.get("config", "x", tenant_id="t5") == "loaded"
        assert [await a.increment("n", tenant_id=tenant) for tenant in tenants] == [1] * 30
        assert await a.add("config", "once", 1, tenant_id="t1")
        assert not await b.add("config", "once", 1, tenant_id="t1")
        async with DirectProducer.open(quick(group.url)) as producer:
            receipts = [await producer.invalidate_scope(tenant) for tenant in tenants]
            await heard([a, b], *receipts)
        assert [await a.get("config", "x", tenant_id=tenant) for tenant in tenants] == [None] * 30


async def test_events_are_heard_however_the_shard_publishes_them(group: ClusterGroup) -> None:
    """How it does lies in its meta, and outlives the version of the server, and of the nodes, that has set it."""
    async with nodes(group.url, 2, staleness_bound_s=600.0, probe_interval_s=300.0) as (a, b):
        names = names_of(a)
        primary = await group.primary_of(names.log)
        for mode in ("sharded", "plain", "sharded"):
            await ask(primary, "HSET", names.meta, "mode", mode)
            await heard([b], await a.invalidate("config", "x", TENANT))  # no probe is due that could tell of it
            assert b.stats().catch_ups == 0


async def test_failover_of_a_primary_keeps_bounded_staleness_and_own_writes(group: ClusterGroup) -> None:
    async with nodes(group.url, 3) as caches:
        name = names_of(caches[0]).log
        old = await group.primary_of(name)

        async def lose() -> None:
            old.kill()

            async def replaced() -> bool:
                return await group.primary_of(name) is not old

            await until(replaced)

        await live_through(caches, lose)
        assert all(cache.stats().reconnects for cache in caches)


async def test_the_other_shards_go_on_while_one_primary_is_away(group: ClusterGroup) -> None:
    async with nodes(group.url, 1) as (cache,):
        doomed = await group.primary_of(names_of(cache).log)
        others = [t for t in map(str, range(50)) if await group.primary_of(names_of(cache, t).log) is not doomed][:5]
        doomed.pause()
        for tenant in others:
            await cache.set("config", "x", tenant, tenant_id=tenant)
            assert await cache.get("config", "x", tenant_id=tenant, use_memory=False) == tenant
        doomed.resume()


def leads_to(cache: Cache, shard: int, port: int) -> bool:
    """Whether a cache asks the server at this port about a shard; not while it is on its way there."""
    with suppress(L2Unavailable):
        return bool(parts(cache).store._links.of(shard).where.endswith(f":{port}"))  # type: ignore[attr-defined]
    return False


async def test_a_slot_moved_under_load_keeps_bounded_staleness_and_own_writes(group: ClusterGroup) -> None:
    async with nodes(group.url, 3) as caches:
        name = names_of(caches[0]).log
        shard = key_of(caches[0], "config", "x", TENANT).shard
        before = parts(caches[0]).node.shards[shard].epoch

        async def there_and_back() -> None:
            first = await group.primary_of(name)
            (second, *_) = [
                server
                for server in group.servers
                if server is not first and (await ask(server, "ROLE"))[0] == b"master"
            ]
            for source, target in ((first, second), (second, first)):
                await group.move_slot(slot_of(name), source, target)
                await until(lambda target=target: leads_to(caches[0], shard, target.port))

        await live_through(caches, there_and_back)
        assert parts(caches[0]).node.shards[shard].epoch != before, "another server has it, so another epoch"
        await until(lambda: all(cache.stats().bus_connected for cache in caches))


async def test_a_slot_half_moved_is_waited_for_and_then_raises_in_time(group: ClusterGroup) -> None:
    async with nodes(group.url, 1) as (cache,):
        await cache.set("config", "x", "old", tenant_id=TENANT)
        name = names_of(cache).log
        source = await group.primary_of(name)
        (target, *_) = await others(group, source)
        source_id, target_id = await group.id_of(source), await group.id_of(target)
        await ask(target, "CLUSTER", "SETSLOT", slot_of(name), "IMPORTING", source_id)
        await ask(source, "CLUSTER", "SETSLOT", slot_of(name), "MIGRATING", target_id)
        began_s = monotonic()
        with pytest.raises(L2Unavailable, match="TRYAGAIN"):
            await cache.get("config", "absent", tenant_id=TENANT, use_memory=False)
        assert monotonic() - began_s < 4 * cache.settings.l2_timeout_s
        value = await cache.get_or_load("config", "absent", lambda: "from the source", tenant_id=TENANT)
        assert value == "from the source"
        await ask(source, "CLUSTER", "SETSLOT", slot_of(name), "STABLE")
        await ask(target, "CLUSTER", "SETSLOT", slot_of(name), "STABLE")
        await until(cache.ready)
        assert await cache.get("config", "x", tenant_id=TENANT, use_memory=False) == "old"


async def test_scripts_forgotten_by_one_primary_are_sent_again(group: ClusterGroup) -> None:
    async with nodes(group.url, 1) as (cache,):
        await cache.set("config", "x", "v", tenant_id=TENANT)
        for server in group.servers:
            await ask(server, "SCRIPT", "FLUSH")
        assert await cache.get_or_load("config", "y", lambda: "w", tenant_id=TENANT) == "w"
        await cache.invalidate("config", "x", tenant_id=TENANT)
        assert cache.ready()


def test_a_cluster_has_64_shards_unless_told_otherwise() -> None:
    assert Settings(url="redis+cluster://localhost").shards == 64
    assert Settings(url="rediss+cluster://localhost").shards == 64
    assert Settings(url="redis+cluster://localhost", shards=3).shards == 3
    assert Settings(url="redis+sentinel://localhost/mymaster").shards == 1


async def test_a_server_that_is_no_cluster_is_told(server_kinds: EmbeddedServer) -> None:
    url = f"redis+cluster://127.0.0.1:{server_kinds.port}"
    with pytest.raises(L2Unavailable, match=r"no node of the Cluster says where its slots are: .*cluster support"):
        async with nodes(url, 1):
            pass


async def test_memory_is_served_while_the_lease_is_live_and_not_beyond(group: ClusterGroup) -> None:
    """All servers hang: what is in L1 is served for less than D, then the source is asked."""
    async with nodes(group.url, 1) as (cache,):
        await cache.set("config", "x", "v", tenant_id=TENANT)
        for server in group.servers:
            server.pause()
        paused_s = monotonic()
        assert await cache.get("config", "x", tenant_id=TENANT) == "v"
        await past(paused_s + D_S)
        assert not cache.ready()
        value = await cache.get_or_load("config", "x", lambda: "from the source", tenant_id=TENANT)
        assert value == "from the source"
        for server in group.servers:
            server.resume()
        await until(cache.ready)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+cluster://a:1/3", "a Cluster has no database but 0"),
        ("redis+cluster://a:1,,b:2", "a host is missing between two commas"),
        ("redis+cluster://a:x,b:2", "the port must be a number"),
        ("redis+sentinel://a:1,b:2", "name the service behind the Sentinels"),
        ("redis+sentinel://a:1/mymaster/x", "must be a number"),
        ("redis+cluster://u:se/cret@a:1", "Redis URL"),
    ],
)
async def test_bad_urls_are_refused_without_showing_a_password(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        async with Cache.open(Settings(url=url)):
            pass
    assert "cret" not in str(raised.value)
