"""What becomes of one primary of several is its own: all other tenants live as if there were none but theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from cachebus import Cache, CacheBusError, Receipt
from cachebus.consumers.outbox import OutboxRelay, create_tables
from cachebus.errors import InvalidationFailed, L2Unavailable
from cachebus.producers.direct import DirectProducer
from cachebus.resp import slot_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SentinelGroup
from tests.conftest import connected
from tests.support.caches import PATIENCE_S, key_of, nodes, parts, quick, until
from tests.support.command import cachebus, ran
from tests.support.outbox import QUICKLY, invalidation, put, running, waiting
from tests.support.primaries import SHARDS, Town, all_is_well, names_of, no_answer
from tests.support.servers import any_binary


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """For tests that break it."""
    async with Town(any_binary(), replicas=0) as town:
        yield town


async def test_one_that_is_dead_costs_no_call_of_another_ones_tenants(town: Town) -> None:
    first, second, third = town.servers
    async with (
        nodes(town.url, 2, shards=SHARDS) as (a, b),
        DirectProducer.open(quick(town.url, shards=SHARDS)) as producer,
    ):
        first.kill()
        with no_answer(first.port):
            await until(lambda: not a.stats().l2_connected)
            for tenant in town.tenants[1:]:
                await all_is_well(a, b, tenant)
                assert (await producer.invalidate("config", "x", tenant, wait="nodes")).status == "applied"
            assert a.ready()
            shard = key_of(a, "config", "x", town.tenants[1]).shard
            links = [parts(cache).store._links for cache in (a, b)]  # type: ignore[attr-defined]
            killed = [of.of(shard) for of in links]
            await ask(second, "CLIENT", "KILL", "TYPE", "normal")
            await ask(third, "CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: all(link.closed for link in killed) and all(of.reaches(shard) for of in links))
            for tenant in town.tenants[1:]:
                await all_is_well(a, b, tenant)
            for ask_first in (a.set("config", "x", 1, town.tenants[0]), producer.invalidate("c", "x", town.tenants[0])):
                with pytest.raises((L2Unavailable, InvalidationFailed)):
                    await ask_first


async def test_an_invalidation_of_all_tenants_names_the_shards_that_failed(town: Town) -> None:
    async with nodes(town.url, 2, shards=SHARDS) as (a, b):
        for tenant in town.tenants:
            await a.set("price", "x", 1, tenant)
            assert await b.get("price", "x", tenant) == 1
        town.servers[0].kill()
        await until(lambda: not a.stats().l2_connected)
        with pytest.raises(InvalidationFailed, match="shards these failed: ") as raised:
            await a.invalidate_type("price")
        receipt = raised.value.receipt
        shards = {tenant: key_of(a, "price", "x", tenant).shard for tenant in town.tenants}
        assert shards[town.tenants[0]] in receipt.failed
        assert {part.shard for part in receipt.parts} | set(receipt.failed) == set(range(SHARDS))
        for tenant in town.tenants[1:]:
            assert await b.get("price", "x", tenant, after=receipt) is None
        with pytest.raises(ValueError, match=f"failed in shard {shards[town.tenants[0]]}"):
            await b.get("price", "x", town.tenants[0], after=receipt)
        town.servers[0].start()

        async def done() -> Receipt | None:
            with suppress(InvalidationFailed):
                return await a.invalidate_type("price", wait="nodes")
            return None

        assert not (await until(done)).failed
        assert await b.get("price", "x", town.tenants[0]) is None


async def test_nodes_are_listed_and_forgotten_at_the_others_though_one_is_away(town: Town, tmp_path: Path) -> None:
    async def command(*more: str) -> tuple[int, str, str]:
        given = ("nodes", *more, "--url", town.url)
        return await asyncio.to_thread(ran, *given, folder=tmp_path, env={"CACHEBUS_NAMESPACE": "cachebus"})

    async with nodes(town.url, 1, shards=SHARDS, node_name="ours") as (a,):
        shards = [key_of(a, "config", "x", tenant).shard for tenant in town.tenants]
        town.servers[0].kill()
        status, out, told = await command()
        assert status == 2
        assert all((f"shard {shard} " in out) == (shard != shards[0]) for shard in shards)
        assert "that is not all" in told
        name = next(word for word in out.split() if word.startswith("ours"))
        status, out, told = await command("forget", name)
        assert status == 2
        assert "that is not all" in told
    town.servers[0].start()

    async def told_again() -> bool:
        return (await command())[:2] == (0, "no node\n")

    await until(told_again)


async def test_events_of_the_others_are_shown_though_one_is_away(town: Town, tmp_path: Path) -> None:
    """Before `cachebus tail` begins, and while it listens."""
    first, second, _ = town.servers
    first.kill()
    async with nodes(town.url, 1, shards=SHARDS) as (a,):
        given = ("tail", "--url", town.url, "--count", "2")
        with cachebus(*given, folder=tmp_path, env={"CACHEBUS_NAMESPACE": "cachebus"}) as command:
            told = command.process.stderr
            assert told is not None
            while "listening to" not in (line := await asyncio.to_thread(told.readline)):
                assert "the others go on" in line
            await a.invalidate("config", "x", town.tenants[2])
            second.kill()
            while "the others go on" not in await asyncio.to_thread(told.readline):
                pass
            await a.invalidate("config", "y", town.tenants[2])
            out, left = await asyncio.to_thread(command.process.communicate)
    assert [line.split(" | ")[-1] for line in out.splitlines()] == ["x", "y"]
    assert command.process.returncode == 2
    assert "that is not all: events of" in left


async def test_a_start_waits_for_no_primary_that_is_away(town: Town) -> None:
    """Nobody has to say that it may begin without the one that is away."""
    (first, *_), settings = town.servers, quick(town.url, shards=SHARDS)
    first.kill()
    async with Cache(settings) as a, Cache(settings) as b, DirectProducer.open(settings) as producer:
        for tenant in town.tenants[1:]:
            await all_is_well(a, b, tenant)
            assert (await producer.invalidate("config", "x", tenant)).status == "applied"
        assert a.ready()
        first.start()
        await until(lambda: a.stats().l2_connected and a.stats().bus_connected and b.stats().bus_connected)
        await until(lambda: not any(map(parts(a).listening.outages.lacks, range(a.settings.shards))))
        await all_is_well(a, b, town.tenants[0])


async def test_where_none_is_there_a_start_says_why(town: Town) -> None:
    for server in town.servers:
        server.kill()
    with pytest.raises(L2Unavailable, match="at start"):
        async with Cache(quick(town.url, shards=SHARDS)):
            raise AssertionError


async def test_what_waits_for_one_is_delivered_while_another_is_away(town: Town) -> None:
    first, second, _ = town.servers
    async with nodes(town.url, 1, shards=SHARDS, pending_max=100, l2_timeout_s=0.3) as (a,):
        tenant = town.tenants[1]
        first.kill()
        await until(lambda: not a.stats().l2_connected)
        await a.set("config", "x", "old", tenant)
        lost = await a.invalidate("config", "x", town.tenants[0])
        second.pause()
        waiting = await a.invalidate("config", "x", tenant)
        assert (lost.status, waiting.status) == ("pending", "pending")
        second.resume()
        await until(lambda: a.stats().pending == 1)
        await a.set("config", "y", 1, tenant)
        assert await a.get("config", "x", tenant, use_memory=False) is None


@pytest.mark.parametrize(("most", "own"), [(20 * SHARDS, 2), (2 * SHARDS, 1)])
async def test_what_waits_for_one_leaves_room_for_what_waits_for_another(town: Town, most: int, own: int) -> None:
    """Each shard has places of its own: of a short queue, one."""
    first, second, _ = town.servers
    async with nodes(town.url, 1, shards=SHARDS, pending_max=most, l2_timeout_s=0.3) as (a,):
        first.kill()
        await until(lambda: not a.stats().l2_connected)
        room = most - own * (SHARDS - 1)
        for number in range(room):
            assert (await a.invalidate("config", str(number), town.tenants[0])).status == "pending"
        with pytest.raises(InvalidationFailed):
            await a.invalidate("config", "one more", town.tenants[0])
        second.pause()
        waiting = [await a.invalidate("config", name, town.tenants[1]) for name in "xy"[:own]]
        assert [each.status for each in waiting] == ["pending"] * own
        with pytest.raises(InvalidationFailed):
            await a.invalidate("config", "z", town.tenants[1])
        second.resume()
        await until(lambda: a.stats().pending == room)
        assert (await a.invalidate("config", "z", town.tenants[1])).status == "applied"


async def test_a_slot_that_nobody_has_takes_one_shard_away(town: Town) -> None:
    _, second, third = town.servers
    tenant, sibling = town.tenants[1], town.sibling
    async with nodes(town.url, 2, shards=SHARDS) as (a, b):
        for server in town.servers:
            try:
                await ask(server, "CLUSTER", "DELSLOTS", slot_of(names_of(tenant).log))
            except L2Unavailable:
                continue  # it has heard of it from the others

        async def refused() -> bool:
            try:
                await a.set("config", "x", 1, tenant)
            except CacheBusError:
                return True
            return False

        await until(refused)
        shards = [key_of(a, "config", "x", t).shard for t in (sibling, *town.tenants[::2])]
        links = [parts(cache).store._links for cache in (a, b)]  # type: ignore[attr-defined]
        killed = [of.of(shard) for of in links for shard in (shards[0], shards[2])]
        await ask(second, "CLIENT", "KILL", "TYPE", "normal")
        await ask(third, "CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: all(link.closed for link in killed))
        await until(lambda: all(of.reaches(shard) for shard in shards for of in links))
        for healthy in (sibling, *town.tenants[::2]):
            await all_is_well(a, b, healthy)
        async with Cache(quick(town.url, shards=SHARDS)) as newborn:
            await all_is_well(newborn, a, sibling)


async def test_a_slot_that_moves_to_a_server_that_hangs_takes_one_shard_away(town: Town) -> None:
    _, source, target = town.servers
    tenant, sibling = town.tenants[1], town.sibling
    slot = slot_of(names_of(tenant).log)
    async with nodes(town.url, 2, shards=SHARDS, l2_timeout_s=0.3) as (a, b):
        await a.set("config", "x", 1, tenant)
        await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await town.id_of(source))
        await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await town.id_of(target))
        while keys := await ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            await town.migrate(source, target, keys)
        target.pause()
        opened = a.stats().reconnects
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(3):
                with pytest.raises(L2Unavailable):
                    await a.set("config", "x", 2, tenant)
                for healthy in (sibling, town.tenants[0]):
                    await all_is_well(a, b, healthy)
        assert a.stats().reconnects == opened, "nothing that answers is closed"
        target.resume()


async def test_without_any_sentinel_the_known_primary_is_tried() -> None:
    async with SentinelGroup(any_binary(), replicas=1, sentinels=1) as group, nodes(group.url, 2) as (a, b):
        for sentinel in group.sentinels:
            sentinel.pause()
        primary: EmbeddedServer = group.data[0]
        before = a.stats().reconnects
        await ask(primary, "CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: a.stats().reconnects > before and a.stats().l2_connected and b.stats().l2_connected)
        await all_is_well(a, b, "acme")
        for sentinel in group.sentinels:
            sentinel.resume()


@pytest.mark.parametrize("begun", ["before its death", "after it"])
async def test_a_relays_rows_for_one_hold_up_no_others(town: Town, database: str, begun: str) -> None:
    first, *_ = town.servers
    lost = invalidation("x", tenant_id=town.tenants[0])
    await create_tables(database)
    async with nodes(town.url, 1, shards=SHARDS) as (a,), connected(database) as connection:
        for tenant in town.tenants:
            await a.set("config", "x", "old", tenant)
        relay = OutboxRelay(database, quick(town.url, shards=SHARDS), options=QUICKLY)
        if begun == "after it":
            first.kill()
            await put(connection, *[lost] * 50)
        async with running(relay):
            if begun == "before its death":
                await put(connection, *[invalidation("y", tenant_id=tenant) for tenant in town.tenants])
                await until(lambda: relay.meters.count("applied") == len(town.tenants))
                first.kill()
                await put(connection, *[lost] * 50)
            await put(connection, *[invalidation("x", tenant_id=tenant) for tenant in town.tenants[1:]])
            for tenant in town.tenants[1:]:

                async def gone(tenant: str = tenant) -> bool:
                    return await a.get("config", "x", tenant, use_memory=False) is None

                await until(gone)

            async def the_others() -> bool:
                return await waiting(database) == 50

            await until(the_others)
            first.start()

            async def done() -> bool:
                return not await waiting(database)

            await until(done)


async def test_who_waits_for_a_host_that_is_gone_waits_for_nobody_before_him() -> None:
    """Calls at the same time share one attempt."""
    with EmbeddedServer(any_binary()) as server:
        async with DirectProducer.open(quick(server.url, l2_timeout_s=0.3, connect_timeout_s=30.0)) as producer:
            server.kill()
            await until(lambda: not producer._live().store.connected)
            with no_answer(server.port):
                async with asyncio.timeout(PATIENCE_S):
                    calls = (producer.invalidate("config", "x", "acme") for _ in range(20))
                    answers = await asyncio.gather(*calls, return_exceptions=True)
                assert all(isinstance(answer, InvalidationFailed) for answer in answers)
