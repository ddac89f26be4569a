"""A primary that is deposed, takes no write meanwhile, and is made the primary again without ever having followed the
one in its place: its replication id is the old one, and what was written there is lost. Sentinel does so by itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from cachebus import Cache, CacheBusError, L2Unavailable
from cachebus.base.clock import monotonic
from cachebus.l2.names import ShardNames
from cachebus.tools.harness.proxy import HOST
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup
from tests.support.caches import D_S, nodes, parts, past, until
from tests.support.replicas import QUICK, SHARED, led
from tests.support.servers import any_binary

TENANT = "acme"
SILENT_S = 3.2
"""Longer than meta lets pass without a look: a primary that was not heard for so long may have been deposed."""


async def written(cache: Cache, value: str) -> None:
    """`x` is `value`, from when the primary takes writes."""

    async def taken() -> bool:
        try:
            await cache.set("config", "x", value, tenant_id=TENANT)
        except CacheBusError:
            return False
        return True

    await until(taken)


def epoch(cache: Cache) -> bytes:
    """The life of L2 that the node is in."""
    return parts(cache).node.shards[0].epoch


@pytest.mark.parametrize(("replicas", "least"), [(2, 1), (3, 2), (4, 2)])
async def test_what_it_held_is_void_for_who_never_left_it_and_for_who_comes(replicas: int, least: int) -> None:
    async with SentinelGroup(any_binary(), replicas=replicas, sentinels=0, min_replicas=least) as group:
        first, second, *others = group.data
        async with nodes(first.url, 1) as (left,):
            await written(left, "old")
            await until(lambda: counted(first, replicas))
            await ask(second, "REPLICAOF", "NO", "ONE")
            for server in others:
                await ask(server, "REPLICAOF", HOST, second.port)
            await until(lambda: followed(second, len(others)))  # who has not yet comes back to the first as it was
            async with nodes(second.url, 1) as (moved,):
                await written(moved, "new")
                written_s = monotonic()
            second.kill()
            for server in others:
                await ask(server, "REPLICAOF", HOST, first.port)
            before = epoch(left)
            await past(written_s + D_S)
            await until(left.ready)
            async with nodes(first.url, 1) as (fresh,):
                assert await fresh.get("config", "x", tenant_id=TENANT) is None
            assert await left.get("config", "x", tenant_id=TENANT) is None
            assert epoch(left) != before


@pytest.mark.parametrize(("replicas", "least", "kept", "new"), [(1, 1, 0, 1), (3, 2, 1, 1), (2, 2, 1, 2)])
async def test_a_new_replica_of_the_other_one_does_not_hide_it(replicas: int, least: int, kept: int, new: int) -> None:
    """At no time can two of them write: each needs `least`, of which the first one has `kept`."""
    conf = f"min-replicas-to-write {least}"
    with ExitStack() as stack:
        first, second, *others = await led(stack, replicas, conf)
        async with nodes(first.url, 1) as (left,):
            await written(left, "old")
            cut_s, before = monotonic(), epoch(left)
            await ask(second, "REPLICAOF", "NO", "ONE")
            for server in others[kept:]:
                await ask(server, "REPLICAOF", HOST, second.port)
            follow = (*SHARED, *QUICK, conf, f"replicaof {HOST} {second.port}")
            joined = [stack.enter_context(EmbeddedServer(any_binary(), conf=follow)) for _ in range(new)]
            async with nodes(second.url, 1) as (moved,):
                await written(moved, "new")
                written_s = monotonic()
            await past(max(written_s + D_S, cut_s + SILENT_S))
            second.kill()
            for server in [*others[kept:], *joined][: least - kept]:
                await ask(server, "REPLICAOF", HOST, first.port)
            await until(left.ready)
            async with nodes(first.url, 1) as (fresh,):
                assert await fresh.get("config", "x", tenant_id=TENANT) is None
            assert await left.get("config", "x", tenant_id=TENANT) is None
            assert epoch(left) != before


@pytest.mark.parametrize("replicas", [1, 3])
async def test_of_an_odd_number_of_replicas_more_than_half_must_have_stayed_however_lately_somebody_looked(
    replicas: int,
) -> None:
    """As many as it takes to write came back at once, by full synchronizations: another one may have written."""
    least = (replicas + 1) // 2
    with ExitStack() as stack:
        first, *_ = await led(stack, replicas, f"min-replicas-to-write {least}")
        async with nodes(first.url, 1, staleness_bound_s=60.0) as (cache,):
            await written(cache, "old")
            await until(lambda: counted(first, replicas))
            before, meta = epoch(cache), ShardNames("cachebus", 0).meta
            synced = int(await ask(first, "HGET", meta, "synced"))
            await ask(first, "HSET", meta, "synced", f"{synced - least}")
            await until(lambda: epoch(cache) != before)
            assert await cache.get("config", "x", tenant_id=TENANT) is None


async def test_sentinel_goes_back_to_a_primary_whose_replacement_dies_soon() -> None:
    async with SentinelGroup(any_binary(), replicas=2, min_replicas=1) as group:
        first, second, third = group.data
        await ask(third, "CONFIG", "SET", "replica-priority", "0")  # never promoted
        async with nodes(group.url, 2) as caches:
            await written(caches[0], "old")
            assert await caches[1].get("config", "x", tenant_id=TENANT) == "old"

            async def handed_over() -> bool:
                try:
                    await ask(group.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
                except L2Unavailable:
                    return False  # it has not heard of the priorities yet, or of a replica
                return True

            before = epoch(caches[0])
            await until(lambda: known_to_sentinels(group, third, b"slave-priority", b"0"))
            await until(handed_over)
            await until(lambda: epoch(caches[0]) != before)
            async with nodes(group.url, 1) as (writer,):  # it leaves: a node that lives would repeat it
                await written(writer, "new")
                assert await group.primary() is second
            # Each Sentinel would begin with what it knows, and a replica with whom it follows, when the second dies.
            await until(lambda: followed(second, 1))
            await until(lambda: named_by_all(group, second))
            await until(lambda: known_to_sentinels(group, third, b"slave-priority", b"0"))
            second.kill()
            await until(lambda: named(group, first))
            role = await ask(first, "INFO", "replication")
            assert b"master_replid2:" + 40 * b"0" in role, "it has never followed"
            await until(lambda: all(cache.ready() for cache in caches))
            assert await named(group, first)
            assert [await cache.get("config", "x", tenant_id=TENANT) for cache in caches] == [None, None]


async def named_by_all(group: SentinelGroup, server: EmbeddedServer) -> bool:
    """Whether each of the Sentinels names it, and knows both of the others as its replicas."""
    for sentinel in group.sentinels:
        facts = by_name(await ask(sentinel, "SENTINEL", "MASTER", SERVICE))
        if (facts[b"port"], facts[b"num-slaves"]) != (b"%d" % server.port, b"2"):
            return False
    return True


async def known_to_sentinels(group: SentinelGroup, replica: EmbeddedServer, name: bytes, value: bytes) -> bool:
    """Whether each of the Sentinels has heard this of the replica: they ask it every ten seconds."""
    for sentinel in group.sentinels:
        known = map(by_name, await ask(sentinel, "SENTINEL", "REPLICAS", SERVICE))
        if [each[name] for each in known if each[b"port"] == b"%d" % replica.port] != [value]:
            return False
    return True


def by_name(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """What names and values by turns say."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def counted(primary: EmbeddedServer, replicas: int) -> bool:
    """Whether the primary has noted in the shard's meta how many follow it: by that it judges who has come back."""
    meta = ShardNames("cachebus", 0).meta
    return await ask(primary, "HGET", meta, "replicas") == b"%d" % replicas and await followed(primary, replicas)


async def named(group: SentinelGroup, server: EmbeddedServer) -> bool:
    """Whether it is the primary, by its own word and that of the Sentinels."""
    try:
        return await group.primary() is server
    except L2Unavailable:
        return False


@pytest.mark.parametrize("replicas", [1, 2, 3])
async def test_a_replica_that_starts_anew_costs_nothing(replicas: int) -> None:
    least = 0 if replicas == 1 else 1
    async with SentinelGroup(any_binary(), replicas=replicas, sentinels=0, min_replicas=least) as group:
        first, *others = group.data
        async with nodes(first.url, 1) as (cache,):
            await written(cache, "kept")
            before = epoch(cache)
            for replica in others:
                replica.kill()
                replica.start()
                await until(lambda: followed(first, replicas))
                await written(cache, "kept")
                assert await cache.get("config", "x", tenant_id=TENANT, use_memory=False) == "kept"
            assert epoch(cache) == before


async def followed(primary: EmbeddedServer, replicas: int) -> bool:
    """Whether all of its replicas follow it."""
    return (await ask(primary, "INFO", "replication")).count(b"state=online") == replicas
