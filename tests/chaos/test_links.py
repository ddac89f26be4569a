"""The links to several primaries: what a primary does itself outweighs what others say of it, nobody is looked for whom
nobody wants, and what is closed stays closed, whenever that was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from cachebus.core.answers import NO_EPOCH
from cachebus.errors import InvalidationFailed, L2Unavailable
from cachebus.keys.key import Keyspace
from cachebus.listening.catch_up import CatchUp
from cachebus.listening.probe import BEGINNINGS_MAX
from cachebus.producers.direct import DirectProducer
from cachebus.resp import ClusterMap, Links, parse_address, slot_of
from cachebus.resp.asked_route import REFRESH_MAX_S, REFRESH_S
from cachebus.resp.cluster_map import SLOTS
from cachebus.settings import SHARDS_MAX
from cachebus.tools.servers.redis import HOST, EmbeddedServer
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup
from tests.support.caches import nodes, parts, quick, until
from tests.support.primaries import SHARDS, Town, names_of
from tests.support.servers import any_binary


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """For tests that break it."""
    async with Town(any_binary(), replicas=0) as town:
        yield town


def shard_of(tenant: str) -> int:
    """A tenant's shard."""
    return Keyspace(SHARDS).key("config", "x", tenant).shard


def links_of(producer: DirectProducer) -> Any:
    """Those to its primaries."""
    return producer._live().store._links  # type: ignore[attr-defined]


@contextmanager
def stranger() -> Iterator[EmbeddedServer]:
    """A node that says that it has all slots: one of another Cluster, or one that all others have left behind."""
    with EmbeddedServer(any_binary(), conf=["cluster-enabled yes"]) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", str(SLOTS - 1))
        yield server


async def looked(links: Any) -> None:
    """One look more, without the pause before it."""
    links.route._next_s = float("-inf")
    await links.route.refresh(monotonic())


async def clients(town: ClusterGroup) -> int:
    """How many connections all servers have."""
    lists = [(await ask(server, "CLIENT", "LIST")).decode().splitlines() for server in town.servers]
    return sum(len(each) - 1 for each in lists)  # but for the one that asks


async def test_one_node_alone_leads_nobody_elsewhere(town: Town) -> None:
    with stranger() as other:
        url = f"redis+cluster://{HOST}:{other.port},{town.url.rpartition('/')[2]}"
        for _ in range(3):
            async with DirectProducer.open(quick(url, shards=SHARDS)) as producer:
                links = links_of(producer)
                for _ in range(len(town.servers) + 1):
                    await looked(links)
                    assert {place.port for place in links.route.known} == {server.port for server in town.servers}


async def test_a_link_that_is_proved_is_left_for_nobodys_word(town: Town) -> None:
    """Two nodes are wrong together; those that nobody has proved go where they say, and come back by themselves."""
    async with DirectProducer.open(quick(town.url, shards=SHARDS)) as producer:
        links, proved = links_of(producer), [shard_of(tenant) for tenant in town.tenants]
        for tenant in town.tenants:
            await producer.invalidate("config", "x", tenant)
        before, opened = list(links.route.known), producer._live().store.opened
        wrong = [before[proved[0]]] * SHARDS
        links.route._learn(wrong, sure=False)
        assert all(map(links.reaches, proved))
        assert [links.route.known[shard] for shard in proved] == [before[shard] for shard in proved]
        assert links.route.known != before, "who has proved nothing goes where it is said"
        links.unconfirmed[proved[1]] = True
        links.route._learn(wrong, sure=False)
        assert not links.reaches(proved[1])
        await producer.invalidate("config", "x", town.tenants[1])
        assert links.route.known[proved[1]] == before[proved[1]], "it was sent back"
        assert producer._live().store.opened == opened


async def test_a_late_word_of_another_server_moves_nothing_that_is_proved(town: Town) -> None:
    async with DirectProducer.open(quick(town.url, shards=SHARDS)) as producer:
        for tenant in town.tenants:
            await producer.invalidate("config", "x", tenant)
        links, (first, second, third) = links_of(producer), map(shard_of, town.tenants)
        place, wrong = links.route.known[first], links.route.known[third]
        await links.follow(first, wrong.host, wrong.port, links.by_shard[second])
        assert links.route.known[first] == place


async def test_who_looks_for_long_and_finds_nothing_new_asks_less_often(town: Town) -> None:
    now_s = 100.0
    seeds = [parse_address(server.url) for server in town.servers]
    route = ClusterMap(seeds, ["a", "b", "c"], connect_timeout_s=5.0, clock=lambda: now_s)

    async def look() -> float:
        nonlocal now_s
        now_s = max(now_s, route._next_s)
        await route.refresh(now_s)
        return route._next_s - now_s

    assert await look() <= REFRESH_S
    assert max([await look() for _ in range(40)]) > 2 * REFRESH_S
    assert await look() <= REFRESH_MAX_S
    route.known[0] = None
    assert await look() <= REFRESH_S, "it has found something"
    assert max([await look() for _ in range(40)]) > 2 * REFRESH_S
    now_s = route._next_s + 2 * REFRESH_S
    assert await look() <= REFRESH_S, "this is another search"


async def test_a_producer_that_nobody_calls_looks_for_nobody(town: Town) -> None:
    async with DirectProducer.open(quick(town.url, shards=SHARDS)) as producer:
        links = links_of(producer)
        await until(lambda: links._refreshing is None or links._refreshing.done())
        assert any(links.unconfirmed)
        links.suspect_primary(shard_of(town.tenants[0]))
        assert not links._refreshing.done()
        await producer.invalidate("config", "x", town.tenants[0])
        await until(links._refreshing.done)


async def test_a_producer_that_is_closed_while_it_connects_to_a_primary_leaves_no_task(town: Town) -> None:
    before = asyncio.all_tasks()
    town.servers[0].pause()
    try:
        async with DirectProducer.open(quick(town.url, shards=SHARDS)):
            assert asyncio.all_tasks() > before
        assert asyncio.all_tasks() == before
    finally:
        town.servers[0].resume()


async def test_a_producer_whose_primary_becomes_a_replica_goes_to_the_new_one() -> None:
    """Its connection stays open, and the server says that it takes no writes."""
    async with SentinelGroup(any_binary(), replicas=1) as group, DirectProducer.open(quick(group.url)) as producer:
        await producer.invalidate("config", "x", "acme")
        old = await group.primary()
        links = links_of(producer)
        await until(lambda: links._refreshing is None or links._refreshing.done())
        (new,) = [server for server in group.data if server is not old]
        await ask(new, "REPLICAOF", "NO", "ONE")
        await ask(old, "REPLICAOF", HOST, new.port)
        for sentinel in group.sentinels:
            await ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
            await ask(sentinel, "SENTINEL", "MONITOR", SERVICE, HOST, new.port, 2)

        async def over() -> bool:
            try:
                await producer.invalidate("config", "x", "acme")
            except InvalidationFailed:
                return False
            return bool(links.route.known[0].port == new.port)

        await until(over)


async def test_of_sentinels_in_a_tie_those_that_know_of_the_latest_failover_count() -> None:
    """Two have heard of a failover, two were cut off before it, and nobody has most."""
    async with SentinelGroup(any_binary(), replicas=1, sentinels=4) as group:
        old = await group.primary()
        (new,) = [server for server in group.data if server is not old]
        async with DirectProducer.open(quick(group.url)) as producer:  # it need not open amid a tie
            route = links_of(producer).route
            for sentinel in group.sentinels[2:]:
                await ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
            for sentinel in group.sentinels[:2]:  # the two that stay have no majority: nobody fails back
                await ask(sentinel, "SENTINEL", "RESET", SERVICE)
            for sentinel in group.sentinels[2:]:
                await ask(sentinel, "SENTINEL", "MONITOR", SERVICE, HOST, new.port, 9)
            assert [await route._failovers(sentinel) for sentinel in route._sentinels] == [0] * 4

            async def epoch_of(sentinel: Any) -> int:
                return 7 if sentinel.port in {each.port for each in group.sentinels[2:]} else 6

            route._failovers = epoch_of
            for _ in range(5):
                place, sure = await route._named()  # it is no primary yet, so who looks goes to the one it follows
                assert place.port == new.port
                assert not sure


@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 4, 6])
async def test_closing_that_is_cancelled_leaves_no_connection(town: Town, ticks: int) -> None:
    before = await clients(town)
    producer = await DirectProducer.open(quick(town.url, shards=SHARDS)).__aenter__()
    links = links_of(producer)
    links.suspect_primary(0)
    closing = asyncio.create_task(producer.aclose())
    for _ in range(ticks):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    if ticks == 0:  # it had not begun
        await producer.aclose()

    async def none_left() -> bool:
        return await clients(town) == before

    await until(none_left)
    assert not links._primaries


async def test_what_is_closed_goes_nowhere(town: Town) -> None:
    """Its server says that the slot is elsewhere in the same tick in which it is closed."""
    producer = await DirectProducer.open(quick(town.url, shards=SHARDS)).__aenter__()
    for tenant in town.tenants:
        await producer.invalidate("config", "x", tenant)
    links, (first, second, _) = links_of(producer), map(shard_of, town.tenants)
    place, by = links.route.known[second], links.by_shard[first]
    store = producer._live().store
    await producer.aclose()
    with pytest.raises(L2Unavailable):
        await links.follow(first, place.host, place.port, by)
    with pytest.raises(L2Unavailable):
        async with links.aside(first, place.host, place.port):
            raise AssertionError("it is closed")
    with pytest.raises(L2Unavailable):
        await store.reach(first)
    links.suspect_primary(first)
    assert not links._primaries
    assert links._refreshing is None or links._refreshing.done()


async def test_a_server_to_which_a_command_went_aside_is_not_let_go_of(town: Town) -> None:
    """It has no slots as yet; meanwhile another primary's connection breaks."""
    with EmbeddedServer(any_binary(), conf=["cluster-enabled yes"]) as new:
        await town._meet(town.servers[0], new)

        async def knows_all() -> bool:
            return len(await ask(new, "CLUSTER", "SLOTS")) >= len(town.servers)

        await until(knows_all)
        async with DirectProducer.open(quick(town.url, shards=SHARDS)) as producer:
            for tenant in town.tenants:
                await producer.invalidate("config", "x", tenant)
            links, (first, second, _) = links_of(producer), map(shard_of, town.tenants)
            async with links.aside(first, HOST, new.port) as link:
                links.by_shard[second]._lost("a test has cut it")
                await links.reach(second)
                await until(lambda: links._tidying is None)
                assert not link.closed
                assert await link.call("PING") == b"PONG"
            links.by_shard[second]._lost("a test has cut it")
            await links.reach(second)
            await until(lambda: link.closed)


async def test_what_is_given_in_one_tick_is_tidied_up_after_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many shards as there may be, a start ends."""
    tidied = 0
    tidy = Links._tidy

    def counted(links: Links[Any]) -> None:
        nonlocal tidied
        tidied += 1
        tidy(links)

    beginning = most = 0
    begin = CatchUp.begin_epoch

    async def begun(catch_up: CatchUp, shard: int, why: str) -> None:
        nonlocal beginning, most
        beginning += 1
        most = max(most, beginning)
        try:
            await begin(catch_up, shard, why)
        finally:
            beginning -= 1

    monkeypatch.setattr(Links, "_tidy", counted)
    monkeypatch.setattr(CatchUp, "begin_epoch", begun)
    shards = SHARDS_MAX
    async with Cache(Settings(url=redis_url, shards=shards, l2_timeout_s=10.0, connect_timeout_s=60.0)) as cache:
        await cache.set("config", "x", 1, tenant_id="acme")
        assert await cache.get("config", "x", tenant_id="acme") == 1
        assert parts(cache).store.connected
    assert tidied < 100
    assert most == BEGINNINGS_MAX


async def test_a_primary_that_hangs_keeps_no_other_ones_shards_from_beginning(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets nodes in, and has more shards than are begun at once."""
    hangs, begin, ends = town.servers[0].port, CatchUp.begin_epoch, asyncio.Event()

    def hung(catch_up: CatchUp, shard: int) -> bool:
        return cast("Any", catch_up)._store.lies_at(shard).port == hangs

    async def begun(catch_up: CatchUp, shard: int, why: str) -> None:
        if hung(catch_up, shard):
            await ends.wait()
        await begin(catch_up, shard, why)

    monkeypatch.setattr(CatchUp, "begin_epoch", begun)
    async with Cache(quick(town.url, shards=SHARDS_MAX, l2_timeout_s=10.0, connect_timeout_s=60.0)) as cache:
        catch_up = parts(cache).listening.catch_up
        well = [shard for shard in range(SHARDS_MAX) if not hung(catch_up, shard)]
        assert SHARDS_MAX - len(well) > BEGINNINGS_MAX
        await until(lambda: all(parts(cache).node.shards[shard].epoch != NO_EPOCH for shard in well))
        ends.set()
        await until(lambda: all(shard.epoch != NO_EPOCH for shard in parts(cache).node.shards))


async def test_a_slot_of_which_all_keys_have_moved_is_waited_for(town: Town) -> None:
    """The server that has them begins an epoch for the shard only when it has the slot: before, it refuses."""
    tenant, (source, *_) = town.tenants[0], town.servers
    slot = slot_of(names_of(tenant).log)
    with EmbeddedServer(any_binary(), conf=["cluster-enabled yes", "cluster-node-timeout 1000"]) as new:
        await ask(new, "CLUSTER", "MEET", HOST, source.port)

        async def known() -> bool:
            lines = [(await ask(server, "CLUSTER", "NODES")).decode() for server in (new, *town.servers)]
            if "cluster_state:ok" not in (await ask(new, "CLUSTER", "INFO")).decode():
                return False
            return all(len(each.splitlines()) == 4 and "handshake" not in each for each in lines)

        await until(known)
        async with nodes(town.url, 1, shards=SHARDS) as (cache,):
            await cache.increment("n", tenant_id=tenant)
            source_id, new_id = await town.id_of(source), await town.id_of(new)
            await ask(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
            while keys := await ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
                await town.migrate(source, new, keys)
            with pytest.raises(L2Unavailable, match="sent elsewhere, and no answer"):
                await cache.increment("n", tenant_id=tenant)
            waiting = asyncio.create_task(cache.increment("n", tenant_id=tenant))
            for server in (new, source):
                await ask(server, "CLUSTER", "SETSLOT", slot, "NODE", new_id)
            assert await waiting == 2
            await until(cache.ready)
