"""A primary that Sentinels watch over: failovers under load, ones that lose what was written last, and the way back.

`min-replicas-to-write` is what makes the promises hold for a primary that is deposed and does not know it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cachebus import Cache, InvalidationFailed, L2Unavailable
from cachebus.base.clock import monotonic
from cachebus.resp import parse_address
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup
from tests.support.caches import D_S, nodes, parts, past, until
from tests.support.servers import any_binary
from tests.support.workload import live_through

TENANT = "acme"


@pytest.fixture
async def group() -> AsyncIterator[SentinelGroup]:
    """Three Sentinels, a primary, two replicas."""
    async with SentinelGroup(any_binary()) as group:
        yield group


async def until_primary_is_not(group: SentinelGroup, old: EmbeddedServer) -> EmbeddedServer:
    """The new primary, once there is one."""
    found: list[EmbeddedServer] = []

    async def another() -> bool:
        try:
            found[:] = [await group.primary()]
        except L2Unavailable:
            return False
        return found[0] is not old

    await until(another)
    return found[0]


async def test_failover_and_fail_back_keep_bounded_staleness_and_own_writes() -> None:
    async with SentinelGroup(any_binary(), replicas=1) as group, nodes(group.url, 3) as caches:
        epochs = {parts(caches[0]).node.shards[0].epoch}
        await live_through(caches, lambda: there_and_back(group, caches))
        epochs.add(parts(caches[0]).node.shards[0].epoch)
        assert len(epochs) == 2
        assert all(cache.stats().reconnects for cache in caches)


async def there_and_back(group: SentinelGroup, caches: list[Cache]) -> None:
    """The primary dies; its replica takes its place; it returns as a replica, and is made the primary again."""
    first = group.data[0]
    first.kill()
    second = await until_primary_is_not(group, first)
    await until(lambda: all(cache.ready() for cache in caches))
    first.start()
    await group.until_replicas(1)

    async def back() -> bool:
        try:
            await ask(group.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
        except L2Unavailable:
            return False  # one is under way, or the replica is not known well enough yet
        return True

    await until(back)
    assert await until_primary_is_not(group, second) is first


async def test_failover_that_loses_a_suffix_brings_no_replaced_value_back(group: SentinelGroup) -> None:
    first, *replicas = group.data

    async def lose() -> None:
        for replica in replicas:
            replica.pause()  # what is written from now on is in the primary alone
        await past(monotonic() + D_S / 2)
        first.kill()
        for replica in replicas:
            replica.resume()
        await until_primary_is_not(group, first)

    async with nodes(group.url, 3) as caches:
        await live_through(caches, lose)


async def test_a_primary_that_is_elsewhere_by_what_was_said_is_looked_for_while_it_still_answers(
    group: SentinelGroup,
) -> None:
    """Sentinels that are told to make a replica the primary say so before it is one, and may take it back."""
    first, second, _ = group.data
    async with nodes(group.url, 1) as (node,):
        links, heard = (part._links for part in (parts(node).store, parts(node).bus))  # type: ignore[attr-defined]

        async def served() -> bool:
            await node.set("config", "x", 1, tenant_id=TENANT)
            return bool(links.reaches(0))

        await until(served)
        await until(lambda: links._refreshing.done() and heard._refreshing.done())
        links.route.moved(0, HOST, second.port)
        await node.set("config", "x", 2, tenant_id=TENANT)
        assert not links.reaches(0), "and whoever was connected goes on"
        await until(served)
        assert links.route.known[0].port == first.port
        await past(monotonic() + D_S)
        await until(node.ready)


async def split(group: SentinelGroup) -> tuple[EmbeddedServer, EmbeddedServer]:
    """A primary that is left alone, and the one that was made in its place."""
    first, second, third = group.data
    await ask(second, "REPLICAOF", "NO", "ONE")
    await ask(third, "REPLICAOF", HOST, second.port)
    return first, second


async def test_a_deposed_primary_without_replicas_renews_no_lease_and_takes_no_write() -> None:
    async with SentinelGroup(any_binary(), sentinels=0, min_replicas=1) as group:  # noqa: SIM117
        async with nodes(group.data[0].url, 1) as (left,):
            await left.set("config", "x", "old", tenant_id=TENANT)
            assert await left.get("config", "x", tenant_id=TENANT) == "old"
            _, second = await split(group)
            async with nodes(second.url, 1) as (moved,):

                async def refused() -> bool:
                    try:
                        await left.invalidate("config", "other", tenant_id=TENANT)
                    except InvalidationFailed:
                        return True
                    return False

                await until(refused)
                refused_s = monotonic()
                await moved.set("config", "x", "new", tenant_id=TENANT)
                await past(refused_s + D_S)
                assert not left.ready()
                with pytest.raises(L2Unavailable):
                    await left.get("config", "x", tenant_id=TENANT)
                assert await left.get_or_load("config", "x", lambda: "from the source", tenant_id=TENANT) == (
                    "from the source"
                )
                assert await moved.get("config", "x", tenant_id=TENANT) == "new"


@pytest.mark.parametrize("least", [1, 2])
async def test_with_three_replicas_one_is_too_few_to_be_waited_for(least: int) -> None:
    """Two sides: a primary that keeps one of them, and another one that was promoted and has the third."""
    async with SentinelGroup(any_binary(), replicas=3, sentinels=0, min_replicas=least) as group:
        first, _, second, third = group.data
        async with nodes(first.url, 1) as (left,):
            await ask(second, "CONFIG", "SET", "min-replicas-to-write", "1")  # so that this side goes on in either case
            await ask(second, "REPLICAOF", "NO", "ONE")
            await ask(third, "REPLICAOF", HOST, second.port)
            async with nodes(second.url, 1) as (moved,):
                assert await left.get_or_load("config", "x", lambda: "old", tenant_id=TENANT) == "old"
                receipt = await moved.invalidate("config", "x", tenant_id=TENANT, wait="nodes")
                assert receipt.status == "applied"

                async def writes() -> bool:
                    try:
                        await left.invalidate("config", "other", tenant_id=TENANT)
                    except InvalidationFailed:
                        return False
                    return True

                for _ in range(3):
                    await past(monotonic() + D_S)
                    if least == 1:
                        assert await writes()
                        assert await left.get("config", "x", tenant_id=TENANT) == "old", (
                            "for as long as the split lasts"
                        )
                if least == 2:
                    assert not await writes()
                    assert not left.ready()
                    with pytest.raises(L2Unavailable):
                        await left.get("config", "x", tenant_id=TENANT)


async def test_whoever_comes_from_a_deposed_primary_repeats_there_what_it_had_acknowledged() -> None:
    """Without `min-replicas-to-write` it went on taking invalidations that nobody else will ever hear of."""
    async with SentinelGroup(any_binary(), sentinels=0) as group:
        place = [parse_address(group.data[0].url)]

        async def dial(*arguments: Any) -> Any:
            return await dialer(place[0])(*arguments)

        async with Proxy(dial) as proxy, nodes(f"redis://{HOST}:{proxy.port}/0", 1) as (publisher,):
            first, second = await split(group)
            async with nodes(second.url, 1) as (other,):
                value = await other.get_or_load("config", "x", lambda: "old", tenant_id=TENANT)
                assert value == "old"
                receipt = await publisher.invalidate("config", "x", tenant_id=TENANT)
                await publisher.invalidate_scope(TENANT, "doc")
                assert receipt.status == "applied", "by the deposed one"
                assert await other.get("config", "x", tenant_id=TENANT) == "old", "which nobody here has heard"
                place[0] = parse_address(second.url)
                proxy.cut()
                proxy.restore()
                moved_s = monotonic()
                await until(publisher.ready)
                await until(lambda: publisher.stats().invalidations_repeated)
                await past(moved_s + D_S)
                assert await other.get("config", "x", tenant_id=TENANT) is None
                assert first.running


async def test_sentinels_that_hold_a_replica_for_the_primary(group: SentinelGroup) -> None:
    """After failovers that cross they do, until they see its role: for twenty seconds, in which the primary is well."""
    primary, replica, _ = group.data
    async with nodes(group.url, 2) as (a, b):
        await a.set("config", "x", 1, TENANT)
        await group.monitor(replica)
        await ask(primary, "CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: a.stats().reconnects and b.stats().reconnects)
        await until(lambda: a.set("config", "x", 2, TENANT))
        await until(lambda: b.get("config", "x", TENANT, use_memory=False))
        assert await b.get("config", "x", TENANT, use_memory=False) == 2
        async with Cache(a.settings) as third:
            assert await third.get("config", "x", TENANT) == 2
        assert {place.port for place in parts(a).store._links.route.known} == {primary.port}  # type: ignore[attr-defined]
        assert all([await ask(each, "SENTINEL", "get-master-addr-by-name", SERVICE) for each in group.sentinels])
        assert (await ask(replica, "ROLE"))[0] == b"slave", "the Sentinels have not seen it yet"


async def test_nobody_who_says_where_the_primary_is(group: SentinelGroup) -> None:
    url = group.url
    for sentinel in group.sentinels:
        sentinel.kill()
    with pytest.raises(L2Unavailable, match="no Sentinel says where 'mymaster' is"):
        async with nodes(url, 1, connect_timeout_s=2.0):
            pass


async def test_a_service_that_sentinels_do_not_know(group: SentinelGroup) -> None:
    with pytest.raises(L2Unavailable, match=r"127\.0\.0\.1:\d+ does not know 'other'"):
        async with nodes(group.url.replace(SERVICE, "other"), 1):
            pass
