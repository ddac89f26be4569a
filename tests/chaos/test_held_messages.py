"""One primary of a Cluster is away: what messages of Kafka ask of it is held, and everything else goes on."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from pydantic import SecretStr

from cachebus import Cache, CacheBusError, Settings
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.cdc.topics.kafka import KafkaSource, TopicsWorker
from cachebus.consumers.kafka import CommandsWorker
from cachebus.consumers.topics.session import TopicSession
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.worker import Worker
from cachebus.tools.servers.kafka import KafkaServer
from tests.conftest import connected
from tests.support.caches import nodes, quick, until
from tests.support.changes import running, tell
from tests.support.commands import another_joined, committed, invalidation, made, put, setup, worker_of
from tests.support.primaries import SHARDS, Town
from tests.support.servers import any_binary

LOST = 5
PASSED = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE database = current_database()"
RULES = """
[[rule]]
table = "*.configs"
data_type = "config"
resource_id = "{id}"
tenant_id = "{tenant}"
on_truncate = "ignore"
"""


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """Three primaries, of which the first dies."""
    async with Town(any_binary(), replicas=0) as town:
        yield town


@pytest.fixture
async def settings(town: Town, kafka: KafkaServer) -> Settings:
    """All tenants' commands in one partition, one behind the other."""
    found = setup(town.url, kafka.address, namespace="cachebus", shards=SHARDS, kafka_partitions=1)
    await made(found)
    return found


async def gone(cache: Cache, tenant: str) -> None:
    """Until the tenant's value is invalidated."""

    async def absent() -> bool:
        try:
            return await cache.get("config", "x", tenant, use_memory=False) is None
        except CacheBusError:  # this machine is busy
            return False

    await until(absent)


async def fill(cache: Cache, tenant: str) -> None:
    """Until the tenant has a value."""

    async def there() -> bool:
        try:
            await cache.set("config", "x", "old", tenant)
        except CacheBusError:
            return False
        return True

    await until(there)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


def held(worker: Worker) -> Any:
    """How many commands or changes wait."""
    return worker.meters.registry.get_sample_value("cachebus_worker_held", {"worker": worker.name})


async def lose(town: Town, settings: Settings, worker: CommandsWorker, cache: Cache) -> None:
    """The worker has spoken to all primaries when the first dies, and is then asked for something of each."""
    await put(settings, *[invalidation("y", tenant) for tenant in town.tenants])
    await until(lambda: worker.meters.count("applied") == 3)
    town.servers[0].kill()
    await put(settings, *[invalidation("x", town.tenants[0])] * LOST)
    await put(settings, *[invalidation("x", tenant) for tenant in town.tenants[1:]])
    for tenant in town.tenants[1:]:
        await gone(cache, tenant)
    await until(lambda: held(worker) == LOST)


def away_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next step to messages the broker is away."""
    following, times = TopicSession._new, iter([True])

    async def fails(*given: Any) -> Any:
        if next(times, False):
            raise KafkaConnectionError("a fault")
        return await following(*given)

    monkeypatch.setattr(TopicSession, "_new", fails)


async def test_commands_for_one_hold_up_no_others(town: Town, settings: Settings) -> None:
    async with nodes(town.url, 1, shards=SHARDS) as (cache,):
        for tenant in town.tenants:
            await fill(cache, tenant)
        worker = worker_of(settings)
        async with running(worker):
            await lose(town, settings, worker, cache)
            assert await committed(settings) == 3, "nothing behind the first that is held"
            assert worker.health.ready
            town.servers[0].start()

            async def all_committed() -> bool:
                return await committed(settings) == 3 + LOST + 2

            await until(all_committed)
            await until(lambda: held(worker) == 0)
            await until(lambda: worker.meters.count("applied") == 3 + LOST + 2)


async def test_rows_changes_for_one_hold_up_no_others(town: Town, kafka: KafkaServer) -> None:
    topic = f"changes-{secrets.token_hex(4)}"
    await made(setup(town.url, kafka.address, kafka_commands_topic=topic, kafka_partitions=1))
    settings = quick(town.url, shards=SHARDS)
    worker = TopicsWorker(settings, parse_rules(RULES), KafkaSource(kafka.address, topic, topic))
    changes = setup(town.url, kafka.address, kafka_commands_topic=topic)

    def changed(number: str, tenant: str) -> bytes:
        row = {"id": number, "tenant": tenant}
        return json.dumps({"op": "c", "after": row, "source": {"schema": "any", "table": "configs"}}).encode()

    async with nodes(town.url, 1, shards=SHARDS) as (cache,):
        for tenant in town.tenants:
            await fill(cache, tenant)
        async with running(worker):
            await put(changes, *[changed("y", tenant) for tenant in town.tenants])
            await until(lambda: worker.meters.count("applied") == 3)
            town.servers[0].kill()
            await put(changes, *[changed("x", tenant) for tenant in town.tenants])
            for tenant in town.tenants[1:]:
                await gone(cache, tenant)
            await until(lambda: worker.meters.count("applied") == 5)
            await until(lambda: held(worker) == 1)
            town.servers[0].start()
            await until(lambda: worker.meters.count("applied") == 6)
            await until(lambda: held(worker) == 0)


@pytest.mark.parametrize("killed", [False, True])
async def test_a_slots_changes_for_one_hold_up_no_others(town: Town, database: str, killed: bool) -> None:
    """What is held is in a table: the slot goes on behind it, and the next worker finds it there."""

    def a_worker() -> SlotWorker:
        return SlotWorker(quick(town.url, shards=SHARDS), parse_rules(RULES), SlotSource(SecretStr(database)))

    async def written(number: str, *tenants: str) -> None:
        await tell(database, [f"INSERT INTO configs VALUES ('{number}', '{tenant}')" for tenant in tenants])

    async def held_rows() -> int:
        async with connected(database) as connection:
            return int(await connection.fetchval("SELECT count(*) FROM cachebus_cdc_held"))

    async def passed() -> bool:
        """The slot is behind all that was written."""
        async with connected(database) as connection:
            return bool(await connection.fetchval(PASSED, before))

    await tell(database, ["CREATE TABLE configs (id text, tenant text, PRIMARY KEY (id, tenant))"])
    first, *others = town.tenants
    async with nodes(town.url, 1, shards=SHARDS) as (cache,):
        for tenant in town.tenants:
            await fill(cache, tenant)
        worker = a_worker()
        task = asyncio.create_task(worker.run())
        await until(lambda: worker.follows)
        await written("y", *town.tenants)
        await until(lambda: worker.meters.count("applied") == 3)
        town.servers[0].kill()
        await written("x", first, *others)
        for tenant in others:
            await gone(cache, tenant)
        async with connected(database) as connection:
            before = await connection.fetchval("SELECT pg_current_wal_lsn()::text")
        await written("z", first, *others)
        await until(passed)

        async def both_held() -> bool:
            return await held_rows() == 2

        await until(both_held)
        held = "cachebus_worker_held", {"worker": "cdc"}
        await until(lambda: worker.meters.registry.get_sample_value(*held) == 2)
        assert worker.health.ready
        if killed:
            task.cancel()
            await asyncio.wait([task])
            worker = a_worker()
            task = asyncio.create_task(worker.run())
            await until(lambda: worker.follows)
        town.servers[0].start()
        await gone(cache, first)

        async def none_held() -> bool:
            return await held_rows() == 0

        await until(none_held)
        await until(lambda: worker.meters.count("applied") == (2 if killed else 3 + 4 + 2))
        worker.drain()
        await asyncio.wait_for(task, 20)


@pytest.mark.parametrize("anew", ["others came", "the broker was away"])
async def test_what_is_held_comes_once_more_to_a_new_consumer_not_twice(
    town: Town, settings: Settings, anew: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not committed is read again, by the same worker too: after its broker was away, or others came."""
    async with nodes(town.url, 1, shards=SHARDS) as (cache,):
        for tenant in town.tenants:
            await fill(cache, tenant)
        worker = worker_of(settings)
        async with running(worker):
            await lose(town, settings, worker, cache)
            if anew == "others came":
                async with another_joined(worker_of(settings)):  # one partition, two workers
                    pass
            else:
                away_once(monkeypatch)
            await put(settings, invalidation("z", town.tenants[0]), invalidation("z", town.tenants[1]))
            await until(lambda: worker.meters.count("again") >= 2)  # what is behind that, and was applied
            await until(lambda: held(worker) == LOST + 1)
            town.servers[0].start()

            async def all_committed() -> bool:
                return await committed(settings) == 3 + LOST + 2 + 2

            await until(all_committed)
            await until(lambda: held(worker) == 0)


async def test_what_a_killed_worker_held_comes_to_the_next(town: Town, settings: Settings) -> None:
    async with nodes(town.url, 1, shards=SHARDS) as (cache,):
        worker = worker_of(settings)
        task = asyncio.create_task(worker.run())
        await lose(town, settings, worker, cache)
        task.cancel()
        await asyncio.wait([task])
        town.servers[0].start()
        await fill(cache, town.tenants[0])
        async with running(worker_of(settings)):
            await gone(cache, town.tenants[0])


async def test_a_lost_slot_waits_for_no_primary_that_is_away(town: Town, database: str) -> None:
    """All that rules name is let go of where that can be, the slot is followed, and the rest is made up for later."""
    first, *others = town.tenants
    head = f"tenants = {json.dumps(list(town.tenants))}\n"

    def a_worker() -> SlotWorker:
        given = SlotSource(SecretStr(database))
        return SlotWorker(quick(town.url, shards=SHARDS), parse_rules(head + RULES), given)

    async def is_whole() -> bool:
        async with connected(database) as connection:
            return bool(await connection.fetchval("SELECT whole FROM cachebus_cdc_slots"))

    await tell(database, ["CREATE TABLE configs (id text, tenant text, PRIMARY KEY (id, tenant))"])
    async with running(a_worker()):
        pass
    await tell(database, ["SELECT pg_drop_replication_slot('cachebus_cdc')"])
    async with nodes(town.url, 1, shards=SHARDS) as (cache,):
        for tenant in town.tenants:
            await fill(cache, tenant)
        town.servers[0].kill()
        worker = a_worker()
        task = asyncio.create_task(worker.run())
        for tenant in others:
            await gone(cache, tenant)
        await until(lambda: worker.follows)
        for tenant in others:
            await fill(cache, tenant)
            await tell(database, [f"INSERT INTO configs VALUES ('x', '{tenant}')"])
            await gone(cache, tenant)
        assert not await is_whole()
        town.servers[0].start()
        await gone(cache, first)
        await until(is_whole)
        worker.drain()
        await asyncio.wait_for(task, 20)
