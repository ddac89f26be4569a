"""Compressed messages in topics that workers read: some hundred bytes of them may stand for a gigabyte."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from aiokafka.structs import TopicPartition

from cachebus import Settings
from cachebus.bus.kafka.inflating import ZSTD, batches_in, codec_of
from cachebus.consumers.topics import reading, screen
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import until
from tests.support.changes import running
from tests.support.commands import committed, dead, invalidation, made, put, setup, worker_of
from tests.support.kafka_batches import CODECS, batch_of, keep
from tests.support.topics import figure


@pytest.fixture
def settings(redis_url: str, kafka: KafkaServer) -> Settings:
    """A topic of one partition and a namespace of the test's own."""
    return setup(redis_url, kafka.address, kafka_partitions=1)


async def came_to(settings: Settings, offset: int) -> bool:
    """Whether the group has come so far."""
    return await committed(settings) == offset


@CODECS
async def test_a_batch_that_inflates_to_too_much_is_stepped_over_and_named(
    settings: Settings, codec: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "MOST_INFLATED_BYTES", 2_000_000)
    await made(settings)
    topic, bomb_bytes = settings.kafka_commands_topic, 16_000_000
    bomb = batch_of(codec, bytes(bomb_bytes), invalidation("lost with it"))
    worker = worker_of(settings)
    async with running(worker):
        await put(settings, invalidation("before"))
        await until(lambda: worker.meters.count("applied") == 1)
        tracemalloc.start()
        try:
            await keep(settings, topic, bomb)
            await put(settings, invalidation("behind"))
            await until(lambda: worker.meters.count("applied") == 2)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < bomb_bytes
        await until(lambda: came_to(settings, 4))
        assert figure(worker, "unreadable_total") == 2
    (letter,) = await dead(settings)
    assert dict(letter.headers)["source"].decode() == f"{topic}/0@1"
    assert re.search(b"more than 2000000 bytes.*: 2 messages from here on", dict(letter.headers)["reason"])


async def test_of_what_inflates_to_much_together_some_is_taken_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "MOST_INFLATED_BYTES", 2_000_000)
    await made(settings)
    large = invalidation("x") + b" " * 200_000
    for _ in range(10):
        await keep(settings, settings.kafka_commands_topic, batch_of(ZSTD, *[large] * 5))
    passed = list[int]()

    class Noted(screen.BatchScreen):
        async def _passed(self, partition: TopicPartition, data: bytes, left_bytes: int) -> tuple[bytes, int]:
            found = await super()._passed(partition, data, left_bytes)
            passed.append(sum(codec_of(raw) > 0 for raw in batches_in(found[0])))
            return found

    monkeypatch.setattr(reading, "BatchScreen", Noted)
    worker = worker_of(settings)
    async with running(worker):
        await until(lambda: came_to(settings, 50))
        assert worker.meters.count("applied") == 50
    assert max(passed) == 1
