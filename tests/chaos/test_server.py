"""What becomes of the server: killed, paused, restarted with old data, flushed, robbed of cachebus's own keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from cachebus import Cache, InvalidationFailed
from cachebus.base.clock import monotonic
from cachebus.keys.key import bucket_of
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, Source, deaf, heard, nodes, past, until
from tests.support.servers import any_binary


@pytest.fixture
def keeping_server() -> Iterator[EmbeddedServer]:
    """A server that writes everything down."""
    with EmbeddedServer(any_binary(), appendonly=True) as server:
        yield server


@pytest.fixture
async def pair(own_server: EmbeddedServer) -> AsyncIterator[list[Cache]]:
    """Two nodes over a server of their own."""
    async with nodes(own_server.url) as caches:
        yield caches


async def everywhere(caches: list[Cache], resource_id: str = "x") -> set[Any]:
    """What all nodes give, by memory and by L2."""
    found = set()
    for cache in caches:
        for use_memory in (True, False):
            found.add(await cache.get("config", resource_id, tenant_id="acme", use_memory=use_memory))
    return found


async def back(caches: list[Cache]) -> None:
    """Until every node has its connections, and its lease in one and the same epoch."""

    def met() -> bool:
        stats = [cache.stats() for cache in caches]
        return (
            all(s.l2_connected and s.bus_connected for s in stats)
            and all(cache.ready() for cache in caches)
            and len({s.shards[0].epoch for s in stats}) == 1
        )

    await until(met)


async def restarted(server: EmbeddedServer, caches: list[Cache]) -> None:
    """The server is killed and started; until every node has noticed: its lease may live on for a while."""
    epoch = caches[0].stats().shards[0].epoch
    server.kill()
    await asyncio.to_thread(server.start)
    await until(lambda: all(cache.stats().shards[0].epoch != epoch for cache in caches))
    await back(caches)


async def filled(caches: list[Cache]) -> None:
    """Values for every way of being invalidated, in the memory of every node."""
    for resource_id in ("kept", "key", "tag", "scope"):
        data_type = "scoped" if resource_id == "scope" else "config"
        receipt = await caches[0].set(data_type, resource_id, "old", tenant_id="acme", tags=[resource_id])
        for cache in caches:
            assert await cache.get(data_type, resource_id, tenant_id="acme", after=receipt) == "old"


async def invalidated(cache: Cache) -> None:
    """All of them but "kept"."""
    await cache.invalidate("config", "key", tenant_id="acme")
    await cache.invalidate_tags(["tag"], tenant_id="acme")
    await cache.invalidate_scope("acme", "scoped")


async def none_came_back(caches: list[Cache]) -> None:
    """No node gives anything that was invalidated."""
    for cache in caches:
        for use_memory in (True, False):
            for data_type, resource_id in (("config", "key"), ("config", "tag"), ("scoped", "scope")):
                found = await cache.get(data_type, resource_id, tenant_id="acme", use_memory=use_memory)
                assert found is None, (resource_id, use_memory)


# -- killed and started again ----------------------------------------------------------------------------


async def test_a_kill_and_restart_without_persistence_brings_nothing_back(
    own_server: EmbeddedServer, pair: list[Cache]
) -> None:
    await filled(pair)
    await invalidated(pair[0])
    await restarted(own_server, pair)
    await none_came_back(pair)
    receipt = await pair[1].set("config", "key", "new", tenant_id="acme")
    assert await pair[0].get("config", "key", tenant_id="acme", after=receipt) == "new"
    assert all(cache.stats().flushes["epoch"] >= 1 for cache in pair)
    assert all(cache.stats().reconnects >= 2 for cache in pair)


async def test_a_kill_and_restart_with_everything_written_down_brings_nothing_back(
    keeping_server: EmbeddedServer,
) -> None:
    async with nodes(keeping_server.url) as pair:
        await filled(pair)
        await invalidated(pair[0])
        assert keeping_server.command("SET", "witness", "1") == "+OK"
        await restarted(keeping_server, pair)
        assert keeping_server.command("EXISTS", "witness") == ":1", "it forgot nothing"
        await none_came_back(pair)


async def test_a_restart_with_an_older_copy_brings_nothing_back(own_server: EmbeddedServer, pair: list[Cache]) -> None:
    """The copy knows nothing of the invalidations, has the old records, and the same epoch."""
    await filled(pair)
    own_server.command("SAVE")
    await invalidated(pair[0])
    await until(lambda: pair[1].stats().shards[0].applied == pair[0].stats().shards[0].applied)
    own_server.kill()  # not sooner: a message that died with it would cost up to D, which is not what is asked here
    await asyncio.to_thread(own_server.start)
    assert own_server.command("EXISTS", "{cachebus:0}:r:acme:config:key") == ":1"
    while not all(cache.stats().l2_connected and cache.ready() for cache in pair):
        for cache in pair:  # from the first moment on
            for data_type, resource_id in (("config", "key"), ("config", "tag"), ("scoped", "scope")):
                assert await cache.get_or_load(data_type, resource_id, lambda: "new", tenant_id="acme") == "new"
    await back(pair)
    await pair[0].invalidate_scope("acme")
    await none_came_back(pair)


async def test_a_write_during_the_outage_is_seen_by_all_within_d_of_its_return(
    own_server: EmbeddedServer, pair: list[Cache]
) -> None:
    source = Source(x="old")
    for cache in pair:
        assert await cache.get_or_load("config", "x", source.load, tenant_id="acme") == "old"
    own_server.kill()
    source.values["x"] = "new"
    await asyncio.to_thread(own_server.start)

    async def written() -> bool:
        try:
            await pair[0].invalidate("config", "x", tenant_id="acme")
        except InvalidationFailed:
            return False
        return True

    await until(written)
    await past(monotonic() + D_S)
    for cache in pair:
        assert await cache.get_or_load("config", "x", source.load, tenant_id="acme") == "new"


async def test_a_load_under_way_over_a_restart_never_enters_l2(own_server: EmbeddedServer, pair: list[Cache]) -> None:
    a, b = pair
    source = Source(x="old")
    source.hold()
    loading = asyncio.create_task(a.get_or_load("config", "x", source.load, tenant_id="acme"))
    await source.asked.wait()
    await restarted(own_server, pair)
    source.values["x"] = "new"
    await b.invalidate("config", "x", tenant_id="acme")
    source.release()
    assert await loading == "old"
    assert await everywhere(pair) == {None}


# -- paused ----------------------------------------------------------------------------------------------


async def test_with_the_server_paused_reads_load_once_a_key_and_are_kept_for_d(
    own_server: EmbeddedServer, pair: list[Cache]
) -> None:
    a = pair[0]
    source = Source(**{str(i): i for i in range(5)})
    own_server.pause()
    paused_s = monotonic()
    longest_s = 0.0

    async def reader(i: int) -> None:
        nonlocal longest_s
        while monotonic() < paused_s + 3 * D_S:
            started_s = monotonic()
            assert await a.get_or_load("config", str(i % 5), source.load, tenant_id="acme") == i % 5
            longest_s = max(longest_s, monotonic() - started_s)
            await asyncio.sleep(0.01)

    await asyncio.gather(*(reader(i) for i in range(20)))
    took_s = monotonic() - paused_s
    assert longest_s < 0.5 * 1.25 + 0.4
    assert 5 <= source.calls <= 5 * (took_s / D_S + 2)
    own_server.resume()
    await back(pair)


async def test_a_server_that_was_paused_for_longer_than_d_brings_back_no_old_lease(
    own_server: EmbeddedServer, pair: list[Cache]
) -> None:
    await filled(pair)
    own_server.pause()
    await past(monotonic() + D_S)
    assert not any(cache.ready() for cache in pair)
    own_server.resume()
    await back(pair)
    await invalidated(pair[0])
    await past(monotonic() + D_S)
    await none_came_back(pair)
    assert pair[1].stats().flushes == {"start": 1}  # the same epoch: what is still good stays


# -- flushed, and robbed ---------------------------------------------------------------------------------


async def test_flushall_voids_memory_within_d_and_brings_nothing_back(
    own_server: EmbeddedServer, pair: list[Cache]
) -> None:
    await filled(pair)
    await invalidated(pair[0])
    own_server.command("FLUSHALL")
    await past(monotonic() + D_S)
    assert await everywhere(pair, "kept") == {None}
    await none_came_back(pair)
    receipt = await pair[0].set("config", "kept", "new", tenant_id="acme")
    assert await pair[1].get("config", "kept", tenant_id="acme", after=receipt) == "new"


async def test_a_write_right_after_flushall_is_seen_at_once(own_server: EmbeddedServer, pair: list[Cache]) -> None:
    a, b = pair
    await filled(pair)
    own_server.command("FLUSHALL")
    receipt = await a.set("config", "kept", "new", tenant_id="acme")
    assert await a.get("config", "kept", tenant_id="acme") == "new"
    assert await b.get("config", "kept", tenant_id="acme", after=receipt) == "new"


@pytest.mark.parametrize("hears", [True, False], ids=["hearing", "deaf"])
async def test_a_lost_key_of_cachebuss_own_brings_nothing_back(own_server: EmbeddedServer, hears: bool) -> None:
    async def scenario(key: str) -> None:
        namespace = key.replace(":", "-")
        async with nodes(own_server.url, namespace=namespace) as pair:
            a, b = pair
            await filled(pair)
            with nullcontext() if hears else deaf(b):
                await invalidated(a)
                assert own_server.command("DEL", f"{{{namespace}:0}}:{key}") == ":1"
                await past(monotonic() + D_S)
                await none_came_back([b])
            await none_came_back(pair)
            await back(pair)
            for cache in pair:
                receipt = await cache.set("config", "kept", "new", tenant_id="acme")
                await heard(pair, receipt)
                assert await everywhere(pair, "kept") == {"new"}

    await asyncio.gather(*map(scenario, ("meta", "log", "nodes", "buckets", f"marks:{bucket_of('acme')}")))


async def test_a_node_that_attaches_after_the_marks_were_lost_sees_nothing_old(
    own_server: EmbeddedServer, pair: list[Cache]
) -> None:
    await filled(pair)
    await invalidated(pair[0])
    assert own_server.command("DEL", f"{{cachebus:0}}:marks:{bucket_of('acme')}") == ":1"
    async with nodes(own_server.url, 1) as late:
        await none_came_back(late)
    await none_came_back(pair)


async def test_a_log_trimmed_past_a_deaf_node_is_a_flush_and_counted(
    own_server: EmbeddedServer, pair: list[Cache]
) -> None:
    a, b = pair
    await filled(pair)
    before = b.stats()
    with deaf(b):
        await invalidated(a)
        for i in range(20):
            await a.set("other", i, i, tenant_id="acme")
        own_server.command("XTRIM", "{cachebus:0}:log", "MAXLEN", "2")
        await past(monotonic() + D_S)
        await none_came_back([b])
        stats = b.stats()
        assert stats.flushes == {"start": 1, "gap": 1}
        assert stats.events_flushed == 23 - (stats.events_applied - before.events_applied)
        assert (stats.shards[0].gap, stats.shards[0].applied) == (0, before.shards[0].applied + 23)
        assert await b.get("config", "kept", tenant_id="acme") == "old"  # from L2 again


async def test_a_log_that_is_full_of_bytes_leaves_a_deaf_node_behind_which_flushes(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 2, log_max_bytes=65_536, namespace="bytes") as pair:
        a, b = pair
        await filled(pair)
        with deaf(b):
            await invalidated(a)
            for i in range(40):
                await a.invalidate_tags([f"{i}-{n}-{'t' * 500}" for n in range(10)], tenant_id="acme")
            await past(monotonic() + D_S)
            await none_came_back([b])
            assert b.stats().flushes == {"start": 1, "gap": 1}
        assert int(own_server.command("MEMORY", "USAGE", "{bytes:0}:log", "SAMPLES", "0").removeprefix(":")) < 100_000
        await back(pair)
        with deaf(b):
            for i in range(5):
                await a.set("other", i, i, tenant_id="acme")
            await past(monotonic() + D_S)
            assert b.stats().shards[0].applied == a.stats().shards[0].applied
        assert b.stats().flushes == {"start": 1, "gap": 1}, "what is still in the log it catches up on"


async def test_a_short_log_in_a_flood_costs_flushes_not_wrong_answers(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 2, log_max_len=16, namespace="short") as (a, b):
        began = b.stats().shards[0].applied
        with deaf(b):
            for _ in range(3):
                for i in range(300):
                    await a.set("config", i, i, tenant_id="acme")
                await until(lambda: b.stats().shards[0].applied == a.stats().shards[0].applied)
        stats = b.stats()
        assert stats.shards[0].applied == began + 900
        assert stats.events_applied + stats.events_flushed == 900
        assert stats.flushes["gap"] >= 1
        assert await b.get_many("config", range(300), tenant_id="acme") == {i: i for i in range(300)}


async def test_script_flush_under_load_fails_nobody(own_server: EmbeddedServer, pair: list[Cache]) -> None:
    until_s = monotonic() + 0.8
    done = 0

    async def caller(i: int) -> None:
        nonlocal done
        cache = pair[i % 2]
        while monotonic() < until_s:
            await cache.set("config", i, done, tenant_id="acme", tags=["t"])
            await cache.get("config", i, tenant_id="acme", use_memory=False)
            await cache.get_or_load("loaded", f"{i}-{done}", lambda: 1, tenant_id="acme")
            await cache.increment("hits", tenant_id="acme")
            await cache.invalidate("config", i, tenant_id="acme")
            done += 1

    async def flusher() -> None:
        while monotonic() < until_s:
            await asyncio.to_thread(own_server.command, "SCRIPT", "FLUSH")

    await asyncio.gather(flusher(), *(caller(i) for i in range(6)))
    assert done > 10
    assert await pair[0].increment("hits", tenant_id="acme", value=0) == done
    assert all(cache.stats().l2_errors == 0 for cache in pair)


async def test_a_lost_lease_means_a_second_load_and_the_first_ones_value_is_not_kept(
    own_server: EmbeddedServer, pair: list[Cache]
) -> None:
    a, b = pair
    first, second = Source(x="first"), Source(x="second")
    first.hold()
    loading = asyncio.create_task(a.get_or_load("config", "x", first.load, tenant_id="acme"))
    await first.asked.wait()
    own_server.command("DEL", "{cachebus:0}:l:acme:config:x")
    assert await b.get_or_load("config", "x", second.load, tenant_id="acme") == "second"
    first.release()
    assert await loading == "first"
    assert await everywhere(pair) == {"second"}
    assert a.stats().fills_rejected == 1


async def test_evicted_records_are_misses(own_server: EmbeddedServer, pair: list[Cache]) -> None:
    a, b = pair
    await a.set("config", "x", 1, tenant_id="acme")
    own_server.command("DEL", "{cachebus:0}:r:acme:config:x")
    assert await b.get("config", "x", tenant_id="acme") is None
    assert await b.get_or_load("config", "x", lambda: 1, tenant_id="acme") == 1
