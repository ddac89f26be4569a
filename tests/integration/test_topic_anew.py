"""A topic that is deleted and made anew while no worker runs: what was unread in it is made up for, once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic

from cachebus import Cache, Settings
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.topics.kafka import KafkaSource, TopicsWorker
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.preflight import preflight
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import nodes, until
from tests.support.changes import running
from tests.support.commands import dead_topic, invalidation, put, setup, worker_of
from tests.support.kafka_rights import READ, TOPIC, allow, deny, grant_all, guarded
from tests.support.logs import told
from tests.support.topics import admin_of

ANEW = "was deleted and made anew"
RULES = """
tenants = ["acme"]
[[rule]]
table = "public.*"
data_type = "row"
resource_id = "{id}"
tenant_id = "acme"
"""


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


@pytest.fixture
def settings(redis_url: str, kafka: KafkaServer) -> Settings:
    return setup(redis_url, kafka.address, kafka_partitions=1, guard_max_s=0)


@pytest.fixture
async def cache(settings: Settings) -> AsyncIterator[Cache]:
    async with Cache(settings) as cache:
        yield cache


async def remade(settings: Settings, topic: str = "") -> None:
    """Deleted and made anew."""
    topic = topic or settings.kafka_commands_topic
    async with admin_of(settings) as admin:
        await admin.delete_topics([topic])

        async def is_made() -> bool:
            answer = await admin.create_topics([NewTopic(topic, 1, 1)])
            return not answer.topic_errors[0][1]

        await until(is_made)


async def missed_once(settings: Settings, cache: Cache) -> None:
    """The topic is another one than the group has read: that is made up for by the next worker, and no more."""
    with told("WARNING", of=ANEW) as lines:
        async with running(worker_of(settings)):
            await until(lambda: is_gone(cache))
            await until(lambda: is_made_up_for(settings))
    assert len(lines) == 1
    await cache.set("config", "unread", "old", "acme")
    with told("WARNING", of=ANEW) as lines:
        async with running(one := worker_of(settings)):
            await put(settings, invalidation("another"))
            await until(lambda: one.meters.count("applied") == 1 and one.health.ready)
    assert not lines
    assert await cache.get("config", "unread", "acme") == "old"


async def is_made_up_for(settings: Settings) -> bool:
    """Whether that is noted."""
    async with admin_of(settings) as admin:
        found = await admin.list_consumer_group_offsets(settings.namespace)
    return '"missed": ""' in found[TopicPartition(settings.kafka_commands_topic, 0)].metadata


async def is_gone(cache: Cache, data_type: str = "config") -> bool:
    return await cache.get(data_type, "unread", "acme") is None


async def read_and_left(settings: Settings, cache: Cache) -> None:
    """A worker has read the topic, and has left; then a command comes."""
    async with running(one := worker_of(settings)):
        await put(settings, invalidation("read"))
        await until(lambda: one.meters.count("applied") == 1 and one.health.ready)
    await cache.set("config", "unread", "old", "acme")
    await put(settings, invalidation("unread"))


async def test_what_was_unread_in_it_is_made_up_for_once(settings: Settings, cache: Cache) -> None:
    await read_and_left(settings, cache)
    await remade(settings)
    await missed_once(settings, cache)


async def test_who_dies_before_it_is_made_up_for_leaves_it_to_the_next(
    settings: Settings, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    await read_and_left(settings, cache)
    await remade(settings)

    async def nothing(*_: Any) -> None:
        """It does not come to that."""

    with monkeypatch.context() as early:
        early.setattr(watcher.Watcher, "_make_up", nothing)
        async with running(one := worker_of(settings)):
            await put(settings, invalidation("read"))
            await until(lambda: one.meters.count("applied") == 1)
    assert not await is_gone(cache)
    await missed_once(settings, cache)


async def test_a_check_says_so_before_a_worker_starts(settings: Settings, cache: Cache) -> None:
    await read_and_left(settings, cache)
    await remade(settings)

    async def is_said() -> bool:
        """A broker hears of the new topic some moments after it is made."""
        found = {one.what: one.findings for one in await preflight(worker_of(settings))}
        return any(ANEW in finding.problem for finding in found["topic"])

    await until(is_said)
    await missed_once(settings, cache)


async def test_topics_that_are_new_are_no_loss_and_one_that_was_read_is(redis_url: str, kafka: KafkaServer) -> None:
    """Of change data capture: all that rules name is let go of."""
    settings = setup(redis_url, kafka.address, guard_max_s=0)
    name = settings.namespace

    def worker() -> TopicsWorker:
        source = KafkaSource(kafka.address, rf"{name}\.public\..*", session_timeout_s=1.0)
        return TopicsWorker(settings, parse_rules(RULES), source)

    async def starts() -> None:
        async with running(one := worker()):
            await until(lambda: one.health.ready and len(one.source.identities._there) >= count)

    async with nodes(redis_url, 1, namespace=name, guard_max_s=0) as (cache,), admin_of(settings) as admin:
        await admin.create_topics([NewTopic(f"{name}.public.a", 1, 1)])
        count = 1
        await starts()
        await admin.create_topics([NewTopic(f"{name}.public.b", 1, 1)])
        await cache.set("row", "unread", "old", "acme")
        count = 2
        await starts()
        assert not await is_gone(cache, "row"), "it is new"
        await remade(settings, f"{name}.public.a")
        async with running(worker()):
            await until(lambda: is_gone(cache, "row"))


async def test_without_the_right_to_keep_it_a_worker_works_and_a_check_warns(redis_url: str) -> None:
    with guarded() as kafka:
        settings = setup(redis_url, kafka.address, kafka_partitions=1)
        async with admin_of(settings) as admin, running(one := worker_of(settings)):
            await put(settings, invalidation("read"))
            await until(lambda: one.meters.count("applied") == 1 and one.health.ready)
            dead = dead_topic(settings)
            await grant_all(admin, dead)
            await deny(admin, TOPIC, dead, READ)
            await until(lambda: warns(settings))
            one.source.identities.found({})
            await put(settings, invalidation("read"))
            await until(lambda: one.meters.count("applied") == 2)
            assert one.health.ready
            await allow(admin, TOPIC, dead, READ)
            await until(lambda: one.source.identities._there)


async def warns(settings: Settings) -> bool:
    """Whether a check does."""
    warnings = [text for one in await preflight(worker_of(settings)) for text in one.warnings]
    return any("not the right Read to" in text and "--operation Read" in text for text in warnings)
