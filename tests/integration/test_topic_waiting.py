"""For how long messages have waited, by the metric of a worker of topics."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaProducer

from cachebus import Settings
from cachebus.consumers.worker import watcher
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import until
from tests.support.changes import running
from tests.support.commands import invalidation, made, put, setup, worker_of
from tests.support.topics import figure


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


@pytest.fixture
def settings(redis_url: str, kafka: KafkaServer) -> Settings:
    """A topic of two partitions and a namespace of the test's own."""
    return setup(redis_url, kafka.address, kafka_partitions=2)


async def test_what_waits_behind_an_open_transaction_grows_old_while_others_are_applied(settings: Settings) -> None:
    await made(settings)
    worker = worker_of(settings)
    topic = settings.kafka_commands_topic
    async with running(worker):
        await put(settings, invalidation("before"))
        await until(lambda: worker.meters.count("applied") == 1)
        await until(lambda: figure(worker, "backlog") == figure(worker, "oldest_seconds") == 0)
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.kafka_bootstrap_servers, transactional_id=settings.namespace
        )
        other = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers)
        await producer.start()
        await other.start()
        try:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, invalidation("open"), partition=0)
            sent = 0

            async def is_old() -> bool:
                nonlocal sent
                await other.send_and_wait(topic, invalidation(f"other{sent}"), partition=1)
                sent += 1
                return figure(worker, "oldest_seconds") > 1.5

            await until(is_old)
            await until(lambda: worker.meters.count("applied") == 1 + sent)
            await producer.commit_transaction()
            await until(lambda: worker.meters.count("applied") == 2 + sent)
            await until(lambda: figure(worker, "backlog") == figure(worker, "oldest_seconds") == 0)
        finally:
            await producer.stop()
            await other.stop()
