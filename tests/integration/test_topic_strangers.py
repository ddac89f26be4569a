"""Who else touches a worker's group and its topics, and brokers that tell a part only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from cachebus import Settings
from cachebus.consumers.topics.brokers import EARLIEST, BrokerAdmin, Committed
from cachebus.consumers.topics.note import OTHERS, Note, StartOffset, begin_at
from cachebus.consumers.worker import watcher
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import until
from tests.support.changes import running
from tests.support.commands import committed, dead_topic, invalidation, made, producing, put, setup, worker_of
from tests.support.logs import told as lines_told
from tests.support.topics import figure
from tests.support.worker_health import why


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


@pytest.fixture
def settings(redis_url: str, kafka: KafkaServer) -> Settings:
    """A topic of two partitions and a namespace of the test's own."""
    return setup(redis_url, kafka.address)


@asynccontextmanager
async def stranger(settings: Settings, **more: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A program that is no worker, in the worker's group."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        group_id=settings.namespace,
        client_id="console-consumer",
        enable_auto_commit=False,
        session_timeout_ms=6000,
        **more,
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def test_another_program_in_the_group_is_told_and_what_it_has_read_is_said_to_be_missed(
    settings: Settings,
) -> None:
    await made(settings)
    worker = worker_of(settings)
    with lines_told("WARNING") as told:
        async with running(worker):
            await put(settings, *map(invalidation, range(20)))
            await until(lambda: worker.meters.count("applied") == 20)
            async with stranger(settings) as consumer:
                consumer.subscribe([settings.kafka_commands_topic])
                await until(lambda: "other programs are in it (console-consumer)" in why(worker, "group"))
                assert not worker.health.ready
                await until(consumer.assignment)
                (part,) = consumer.assignment()
                async with producing(settings) as producer:
                    await producer.send_and_wait(part.topic, invalidation("x"), partition=part.partition)
                await until(lambda: _taken(consumer))
                await consumer.commit()
            await until(lambda: worker.health.ready)
            await until(lambda: any("not those that its workers have committed" in line for line in told))
        assert any("nobody can name what they touched" in line for line in told)
        assert not any("rules" in line for line in told)  # it has none


async def _taken(consumer: AIOKafkaConsumer) -> bool:
    return bool(await consumer.getmany(timeout_ms=100))


async def test_offsets_that_somebody_has_set_are_told(settings: Settings) -> None:
    await made(settings)
    await put(settings, *map(invalidation, range(20)))
    async with stranger(settings) as consumer:
        parts = [TopicPartition(settings.kafka_commands_topic, number) for number in range(2)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        await consumer.commit({part: OffsetAndMetadata(end, "") for part, end in ends.items()})
    with lines_told("WARNING") as told:
        worker = worker_of(settings)
        async with running(worker):
            await until(lambda: any("not those that its workers have committed" in line for line in told))
            await put(settings, invalidation("next"))
            await until(lambda: worker.meters.count("applied") == 1)
    assert figure(worker, "cut_total") >= 1


def test_whose_offsets_they_are_is_told_by_their_note() -> None:
    assert begin_at(Committed(5, ""), 0, Note("ours", "topic"), None) == StartOffset(5, OTHERS)
    assert begin_at(Committed(0, ""), 0, Note("ours", "topic"), None) == StartOffset(0)  # nothing was passed over


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cleanup.policy": "compact"}, "it is compacted"),
        ({"retention.ms": "1000"}, "letters are removed from it after"),
    ],
    ids=["compacted", "short"],
)
async def test_a_topic_of_the_dead_that_keeps_too_little_is_told(
    settings: Settings, wrong: dict[str, str], said: str
) -> None:
    dead = settings.model_copy(update={"kafka_commands_topic": dead_topic(settings), "kafka_partitions": 1})
    await made(dead, **wrong)
    worker = worker_of(settings)
    task = asyncio.create_task(worker.run())
    await until(lambda: said in why(worker, "topic") and "kafka-configs.sh --bootstrap-server" in why(worker, "topic"))
    worker.drain()
    await asyncio.wait_for(task, 10)


async def test_a_partition_of_which_nobody_tells_where_it_begins_is_begun_when_somebody_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that has just moved does not tell. The driver would read it all the same, from what is committed: what
    it read would be applied, and never committed."""
    await made(settings)
    silent = True
    asked = BrokerAdmin.offsets

    async def offsets(self: BrokerAdmin, topics: Any, partitions: Any, which: int, **more: Any) -> Any:
        found = await asked(self, topics, partitions, which, **more)
        return {one: at for one, at in found.items() if one.partition != 1 or which != EARLIEST or not silent}

    monkeypatch.setattr(BrokerAdmin, "offsets", offsets)
    worker = worker_of(settings)
    async with running(worker):
        async with producing(settings) as producer:
            for number in range(20):
                await producer.send_and_wait(settings.kafka_commands_topic, invalidation(number), partition=number % 2)
        await until(lambda: worker.meters.count("applied") == 10)
        silent = False
        await until(lambda: worker.meters.count("applied") == 20)
        await until(lambda: _all_committed(settings))


async def _all_committed(settings: Settings) -> bool:
    return await committed(settings) == 20
