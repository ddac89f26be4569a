"""The other process of the Kafka bus's measurements: nodes on either bus, and a bare consumer of aiokafka's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from tests.bench.other_node import Arrivals, questions, said

TOPIC = "bare"


def settings(url: str, kafka: str) -> Settings:
    """Those of a node whose events go over Kafka."""
    return Settings(url=url, namespace="kafka", bus="kafka", kafka_bootstrap_servers=kafka)


@asynccontextmanager
async def listening(kafka: str, heard: Arrivals) -> AsyncIterator[None]:
    """Note when each message is there, as soon as aiokafka has it."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    await consumer.start()
    consumer.assign([TopicPartition(TOPIC, 0)])
    await consumer.seek_to_end()
    hearing = asyncio.create_task(_hear(consumer, heard))
    try:
        yield
    finally:
        hearing.cancel()
        await asyncio.wait([hearing])
        await consumer.stop()


async def _hear(consumer: Any, heard: Arrivals) -> None:
    while True:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            for record in records:
                heard.arrived(int(record.value), monotonic())


async def main(url: str, kafka: str) -> None:
    """Answer when what was asked for has arrived, and when each."""
    arrivals = {"kafka": Arrivals(), "redis": Arrivals(), "bare": Arrivals()}
    async with (
        listening(kafka, arrivals["bare"]),
        Cache.open(settings(url, kafka)) as over_kafka,
        Cache.open(Settings(url=url, namespace="redis")) as over_redis,
    ):
        over_kafka.on_applied = lambda shard, epoch, seq, at_s: arrivals["kafka"].arrived(seq, at_s)
        over_redis.on_applied = lambda shard, epoch, seq, at_s: arrivals["redis"].arrived(seq, at_s)
        said("ready")
        async for question in questions():
            said(await arrivals[question["who"]].until(question["until"]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
