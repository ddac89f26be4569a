"""The other process of the Kafka bus's measurements: nodes on either bus, and a bare consumer of aiokafka's."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from cachebus import Cache, Settings
from cachebus.clock import monotonic
from tests.bench.other_node import Arrivals, questions, said

TOPIC = "bare"


def settings(url: str, kafka: str) -> Settings:
    """Those of a node whose events go over Kafka."""
    return Settings(url=url, namespace="kafka", bus="kafka", kafka_bootstrap_servers=kafka)


async def listen(consumer: Any, heard: Arrivals) -> None:
    """Note when each message is there, as soon as aiokafka has it."""
    while True:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            for record in records:
                heard.arrived(int(record.value), monotonic())


async def main(url: str, kafka: str) -> None:
    """Answer when what was asked for has arrived, and when each."""
    arrivals = {"kafka": Arrivals(), "redis": Arrivals(), "bare": Arrivals()}
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    await consumer.start()
    consumer.assign([TopicPartition(TOPIC, 0)])
    await consumer.seek_to_end()
    listening = asyncio.create_task(listen(consumer, arrivals["bare"]))
    try:
        async with (
            Cache.open(settings(url, kafka)) as over_kafka,
            Cache.open(Settings(url=url, namespace="redis")) as over_redis,
        ):
            over_kafka.on_applied = lambda shard, epoch, seq, at_s: arrivals["kafka"].arrived(seq, at_s)
            over_redis.on_applied = lambda shard, epoch, seq, at_s: arrivals["redis"].arrived(seq, at_s)
            said("ready")
            async for question in questions():
                said(await arrivals[question["who"]].until(question["until"]))
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        await consumer.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
