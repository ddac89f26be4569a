"""What each hook tells, and when: made to happen over a real server."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from cachebus import Cache, L2Unavailable, Policy
from cachebus.base.clock import monotonic
from cachebus.observe.hook_events import (
    DegradedEvent,
    EvictedEvent,
    FlushedEvent,
    InvalidatedEvent,
    KeyIds,
    LeaseLapsedEvent,
    LoadedEvent,
    LoadFailedEvent,
    ScopeIds,
    StaleServedEvent,
)
from cachebus.resp import parse_address
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, Source, deaf, nodes, parts, past, quick, until

X = KeyIds("config", "x", "acme")


async def test_invalidated_is_told_on_every_node_with_who_and_why(redis_url: str) -> None:
    async with nodes(redis_url, 2, l2_timeout_s=10.0) as (a, b):
        here: list[InvalidatedEvent] = []
        there: list[InvalidatedEvent] = []
        a.on("invalidated", here.append)
        b.on("invalidated", there.append)
        receipt = await a.invalidate("config", "x", "acme", reason="price import 17")
        await a.set("config", "y", 1, "acme", "a7")
        await a.invalidate_tags(["plan"], "acme")
        await a.invalidate_scope("acme", "config", collection_id="c1")
        await until(lambda: len(there) == len(here) == 4)
        for told in (here, there):
            first, second, third, fourth = told
            assert (first.epoch, first.seq, first.shard) == (receipt.epoch, receipt.seq, receipt.shard)
            assert (first.keys, first.scopes, first.reason) == ((X,), (), "price import 17")
            assert first.origin == parts(a).node.id
            assert second.keys == (KeyIds("config", "y", "acme", "a7"),)
            assert third.scopes == (ScopeIds("acme", tag="plan"),)
            assert fourth.scopes == (ScopeIds("acme", "config", collection_id="c1"),)
            assert [event.seq for event in told] == list(range(first.seq, first.seq + 4))
        assert await b.get(**here[1].keys[0].arguments) == 1


async def test_invalidated_is_told_of_what_a_deaf_node_reads_from_the_log(redis_url: str) -> None:
    async with nodes(redis_url, 2, l2_timeout_s=10.0) as (a, b):
        told: list[InvalidatedEvent] = []
        b.on("invalidated", told.append)
        with deaf(b):
            await a.invalidate("config", "x", "acme")
            await until(lambda: told)
        assert told[0].keys == (X,)


async def test_loaded_is_told_once_a_load_with_where_it_is_kept(redis_url: str) -> None:
    policies = {"page": Policy(ttl_s=60, soft_ttl_s=0.05), "void": Policy(negative_ttl_s=5)}
    async with nodes(redis_url, 1, policies=policies, l2_timeout_s=10.0) as (a,):
        told: list[LoadedEvent] = []
        a.on("loaded", told.append)
        source = Source(x="secret")
        await asyncio.gather(*(a.get_or_load("config", "x", source.load, "acme") for _ in range(5)))
        await a.get_or_load("config", "none", source.load, "acme")
        await a.get_or_load("void", "none", source.load, "acme")
        await until(lambda: len(told) == 3)
        assert (told[0].key, told[0].found, told[0].stored, told[0].source) == (X, True, True, "database")
        assert [(e.key.data_type, e.found, e.stored) for e in told[1:]] == [
            ("config", False, False),
            ("void", False, True),
        ]
        assert told[0].took_s >= 0 and not told[0].refresh and "secret" not in repr(told)
        async with a.write_guard([("config", "g")], "acme", db_timeout_s=1) as guard:
            await a.get_or_load("config", "g", lambda: 1, "acme")
            guard.nothing_written()
        await until(lambda: len(told) == 4)
        assert not told[3].stored
        await a.get_or_load("page", "x", source.load, "acme")
        await past(monotonic() + 0.06)
        await a.get_or_load("page", "x", source.load, "acme")
        await until(lambda: len(told) == 6)
        assert [e.refresh for e in told[4:]] == [False, True]


async def test_what_could_not_be_encoded_is_loaded_and_not_stored(redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=10.0) as (a,):
        told: list[LoadedEvent] = []
        a.on("loaded", told.append)
        await a.get_or_load("config", "x", object, "acme")
        await until(lambda: told)
        assert told[0].found and not told[0].stored


async def test_load_failed_and_stale_served(redis_url: str) -> None:
    policy = Policy(ttl_s=0.05, fail_safe_s=60, retries=1, retry_backoff_s=0.001)
    async with nodes(redis_url, 1, policies={"config": policy}, guard_max_s=0, l2_timeout_s=10.0) as (a,):
        failed: list[LoadFailedEvent] = []
        stale: list[StaleServedEvent] = []
        a.on("load_failed", failed.append)
        a.on("stale_served", stale.append)
        source = Source(x=1)
        assert await a.get_or_load("config", "x", source.load, "acme") == 1
        await past(monotonic() + 0.06)
        source.error = ConnectionError("password=hunter2")
        assert await a.get_or_load("config", "x", source.load, "acme") == 1
        assert await a.get_or_load("config", "x", source.load, "acme") == 1
        with pytest.raises(ConnectionError):
            await a.get_or_load("config", "y", source.load, "acme")
        await until(lambda: len(failed) == 2 and len(stale) == 2)
        assert [(e.key, e.error) for e in failed] == [
            (X, "ConnectionError"),
            (KeyIds("config", "y", "acme"), "ConnectionError"),
        ]
        assert {e.key for e in stale} == {X} and all(e.level in ("l1", "l2") for e in stale)
        assert "hunter2" not in repr(failed)
        assert a.stats().types["config"].fallbacks == 2


async def test_lease_lapsed_is_told_while_l2_is_silent_and_once(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, shards=1) as (a,):
        told: list[LeaseLapsedEvent] = []
        a.on("lease_lapsed", told.append)
        await a.set("config", "x", 1, "acme")
        own_server.pause()
        paused_s = monotonic()
        await until(lambda: told, within_s=5.0)
        assert told[0].lapsed_at_s <= told[0].at_s <= monotonic()
        assert told[0].lapsed_at_s <= paused_s + D_S + 0.1
        await past(paused_s + D_S)
        with pytest.raises(L2Unavailable):  # memory serves nothing that is older than D
            await a.get("config", "x", "acme")
        own_server.resume()
        await until(a.ready)
        assert a.stats().lease_lapses == 1
        assert len(told) == 1
        own_server.pause()
        await until(lambda: len(told) == 2, within_s=5.0)
        own_server.resume()
        await until(a.ready)


async def test_flushed_is_told_with_its_cause_and_not_at_the_start(own_server: EmbeddedServer) -> None:
    told: list[FlushedEvent] = []
    cache = Cache(quick(own_server.url, shards=1))
    cache.on("flushed", told.append)
    async with cache:
        await cache.set("config", "x", 1, "acme")
        await asyncio.sleep(0)
        assert not told
        own_server.kill()
        await asyncio.to_thread(own_server.start)
        await until(lambda: told)
        assert [(e.shard, e.cause) for e in told] == [(0, "epoch")]


async def test_evicted_is_told_for_each_entry_that_had_to_go(redis_url: str) -> None:
    async with nodes(redis_url, 1, l1_max_entries=10) as (a,):
        told: list[EvictedEvent] = []
        a.on("evicted", told.append)
        for number in range(25):
            await a.set("config", number, "v" * 10, "acme")
        await until(lambda: len(told) == a.stats().l1_evictions == 15)
        assert all(e.key.data_type == "config" and e.key.tenant_id == "acme" and e.size_bytes > 10 for e in told)
        assert len({e.key for e in told}) == 15


async def test_degraded_is_told_to_and_fro_of_l2_and_of_the_bus(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, connect_timeout_s=0.5) as (a,):
        told: list[DegradedEvent] = []
        a.on("degraded", told.append)
        own_server.kill()
        await until(lambda: {e.part for e in told} == {"L2", "bus"})
        assert all(e.degraded and e.why for e in told)
        await asyncio.to_thread(own_server.start)
        await until(lambda: len(told) == 4)
        assert {(e.part, e.degraded, e.why) for e in told[2:]} == {("L2", False, ""), ("bus", False, "")}
        assert not any("out of reach" in said for said in a.health().degraded)


async def test_a_bus_that_is_cut_off_alone_is_told_alone(redis_url: str) -> None:
    address = parse_address(redis_url)
    async with (
        Proxy(dialer(address)) as proxy,
        nodes(f"redis://{HOST}:{proxy.port}/{address.db}", 1, connect_timeout_s=0.3) as (a,),
    ):
        told: list[DegradedEvent] = []
        a.on("degraded", told.append)
        proxy.hold(["events"])
        proxy.reset(["events"])
        await until(lambda: told)
        await a.set("config", "x", 1, "acme")  # commands work
        proxy.restore()
        await until(lambda: len(told) == 2)
        assert [(e.part, e.degraded) for e in told] == [("bus", True), ("bus", False)]


async def test_nobody_is_told_of_hits_and_of_what_did_not_happen(redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=10.0) as (a,):
        told: list[Any] = []
        for name in ("loaded", "load_failed", "stale_served", "lease_lapsed", "flushed", "evicted", "degraded"):
            a.on(name, told.append)
        await a.set("config", "x", 1, "acme")
        for _ in range(10):
            assert await a.get("config", "x", "acme") == 1
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await parts(a).listening.telling._news.wait()
        assert told == []
