"""Workers of one slot or group for different L2s: what was applied at another is let go of here, once. No restart or
failover is taken for that."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from pydantic import SecretStr

from cachebus import Cache, Settings
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.preflight import preflight
from cachebus.l2.names import ShardNames
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, quick, until
from tests.support.cdc_surroundings import RULE, Looks, at_work, gone, put, worker
from tests.support.changes import fetched, running, tell
from tests.support.commands import QUICKLY, another_joined, invalidation, made, setup, worker_of
from tests.support.commands import put as send
from tests.support.primaries import SHARDS, Town
from tests.support.servers import any_binary
from tests.support.worker_health import why

TABLE = "CREATE TABLE o (id int PRIMARY KEY, tenant_id text, x int); ALTER TABLE o REPLICA IDENTITY FULL"


def elsewhere(settings: Settings, server: EmbeddedServer) -> Settings:
    """The same worker, for another server."""
    return settings.model_copy(update={"url": quick(server.url).url})


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


async def test_what_a_slots_worker_for_another_redis_has_applied_is_let_go_of(
    database: str, redis_url: str, own_server: EmbeddedServer
) -> None:
    await tell(database, [TABLE])
    async with Cache(quick(redis_url)) as cache:
        async with running(worker(database, redis_url)):
            await put(cache)
        async with running(wrong := worker(database, own_server.url)):
            await tell(database, ["INSERT INTO o VALUES (1, 'acme', 0)"])
            await until(lambda: wrong.meters.count("applied") == 1)
        async with running(right := worker(database, redis_url)):
            await gone(cache)
            looks = Looks(right)
            await until(lambda: looks.let_be(cache))  # once


async def test_so_it_is_where_an_older_state_of_what_is_remembered_of_tables_came_back(
    database: str, redis_url: str, own_server: EmbeddedServer
) -> None:
    """It says that all was applied at the right Redis; the rest of the row is as it is."""
    differs = "SELECT s.tables <> b.tables FROM cachebus_cdc_slots s, before b"
    await tell(database, [TABLE])
    async with Cache(quick(redis_url)) as cache:
        async with running(worker(database, redis_url)):
            await put(cache)
        await tell(database, ["CREATE TABLE before AS TABLE cachebus_cdc_slots"])
        async with running(wrong := worker(database, own_server.url)):
            await tell(database, ["INSERT INTO o VALUES (1, 'acme', 0)"])
            await until(lambda: wrong.meters.count("applied") == 1)
            await until(lambda: fetched(database, differs))
        await tell(database, ["UPDATE cachebus_cdc_slots s SET tables = b.tables FROM before b"])
        async with running(right := worker(database, redis_url)):
            await gone(cache)
            looks = Looks(right)
            await until(lambda: looks.let_be(cache))  # once


async def test_what_a_slots_worker_has_applied_that_cant_tell_its_redis_is_let_go_of_by_who_can(
    database: str, redis_url: str
) -> None:
    """1. The right one has begun. 2. Another one applies a change at a Cluster whose first shard was away all the time.
    3. The right one goes on."""
    await tell(database, [TABLE])
    async with Cache(quick(redis_url)) as cache, Town(replicas=0) as town:
        zero = await town.primary_of(ShardNames("cachebus", 0).identity)
        tenant = next(one for one, server in zip(town.tenants, town.servers, strict=True) if server is not zero)
        rules = parse_rules(RULE.format("o", "o"))
        async with running(worker(database, redis_url, rules)):
            pass
        await cache.set("o", 1, "old", tenant)
        await asyncio.to_thread(zero.kill)
        there = SlotWorker(quick(town.url, shards=SHARDS), rules, SlotSource(SecretStr(database), poll_s=0.005))
        async with at_work(there):
            await until(lambda: there.follows)
            await tell(database, [f"INSERT INTO o VALUES (1, '{tenant}', 0)"])
            await until(lambda: there.meters.count("applied") == 1)
        async with running(one := worker(database, redis_url, rules)):
            await until(lambda: _is_gone(cache, tenant))
            looks = Looks(one)
            await until(lambda: looks.let_be(cache))  # once


async def _is_gone(cache: Cache, tenant: str) -> bool:
    return await cache.get("o", 1, tenant) is None


async def test_a_slots_worker_that_is_started_again_lets_go_of_nothing(database: str) -> None:
    """Nor after its server was: it is the same L2, in another epoch."""
    await tell(database, [TABLE])
    with EmbeddedServer(any_binary(), appendonly=True) as server:
        async with running(worker(database, server.url)):
            pass
        for _ in range(2):
            async with Cache(quick(server.url)) as cache, running(again := worker(database, server.url)):
                assert await Looks(again).let_be(cache)
            server.restart()


async def test_what_a_worker_of_commands_for_another_redis_has_applied_is_let_go_of(
    kafka: KafkaServer, redis_url: str, own_server: EmbeddedServer
) -> None:
    settings = setup(redis_url, kafka.address)
    await made(settings)
    async with nodes(redis_url, 1, namespace=settings.namespace) as (cache,):
        for name in ("a", "b"):
            await cache.set("config", name, "old", "acme")
        for last, here in (("a", settings), ("a", settings), ("b", elsewhere(settings, own_server))):
            async with running(one := worker_of(here)):
                await send(settings, invalidation(last))
                await until(lambda one=one: one.meters.count("applied") == 1)
            assert await cache.get("config", "b", "acme") == "old"
        async with running(worker_of(settings)):

            async def is_gone() -> bool:
                return await cache.get("config", "b", "acme") is None

            await until(is_gone)


async def test_workers_for_different_redis_in_one_group_are_told_and_what_each_applied_is_let_go_of(
    kafka: KafkaServer, redis_url: str, own_server: EmbeddedServer
) -> None:
    settings = setup(redis_url, kafka.address)
    await made(settings)
    right, wrong = worker_of(settings), worker_of(elsewhere(settings, own_server))
    async with nodes(redis_url, 1, namespace=settings.namespace) as (cache,):
        tenants = [f"t{number}" for number in range(8)]
        async with running(wrong), another_joined(right):
            for tenant in tenants:
                await cache.set("config", "b", "old", tenant)
                await send(settings, invalidation("b", tenant), key=tenant.encode())
            await until(lambda: right.meters.count("applied") + wrong.meters.count("applied") == len(tenants))
            assert wrong.meters.count("applied") and right.meters.count("applied")
            for one in (right, wrong):
                await until(lambda one=one: "another Redis" in why(one, "group"))
                assert "CACHEBUS_URL" in why(one, "group")
            seen = {one.what: str(one.findings) for one in await preflight(worker_of(settings))}
            assert "another Redis" in seen["group"]
            wrong.drain()

            async def all_gone() -> bool:
                return not any([await cache.get("config", "b", tenant) for tenant in tenants])

            await until(all_gone)
            await until(lambda: right.health.ready)


async def test_a_worker_of_another_namespace_in_a_group_is_told_so_and_nothing_of_another_redis(
    kafka: KafkaServer, redis_url: str
) -> None:
    """What each knows its L2 by is its namespace's own, though it is one Redis."""
    settings = setup(redis_url, kafka.address)
    await made(settings)
    stranger = settings.model_copy(update={"namespace": "other"})
    options = replace(QUICKLY, group=settings.namespace)
    async with nodes(redis_url, 1, namespace=settings.namespace) as (cache,), running(right := worker_of(settings)):
        await cache.set("config", "b", "old", "acme")
        await send(settings, invalidation("b"))
        await until(lambda: right.meters.count("applied") == 1)
        seen = {one.what: str(one.findings) for one in await preflight(worker_of(stranger, options))}
        assert "it serves the caches of the namespace" in seen["group"]
        assert "another Redis" not in seen["group"]
