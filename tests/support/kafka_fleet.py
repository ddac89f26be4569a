"""Caches whose events go by Kafka: what tests do with them, and how they see whether the bus was quick."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from secrets import token_hex
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.bus import KafkaBus
from cachebus.bus.kafka.topic import EXISTS
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import Source, key_of, parts, past, until
from tests.support.commands import held

WHERE = {"tenant_id": "acme"}
QUICK_S = 0.25
"""An invalidation that waited for a broker would take longer."""


def bus_of(cache: Cache) -> KafkaBus:
    """Its bus."""
    bus = parts(cache).bus
    assert isinstance(bus, KafkaBus)
    return bus


async def shared(a: Cache, b: Cache, *ids: str) -> Source:
    """Both nodes hold these of a source in their memory."""
    source = Source(**dict.fromkeys(ids, "old"))
    for cache in (a, b):
        for one in ids:
            assert await cache.get_or_load("config", one, source.load, **WHERE) == "old"
    return source


async def written(cache: Cache, source: Source, resource_id: str, value: str) -> float:
    """Write to the source and invalidate; when that had returned. It must not have waited for a broker."""
    source.values[resource_id] = value
    began_s = monotonic()
    await cache.invalidate("config", resource_id, **WHERE)
    assert monotonic() - began_s < QUICK_S
    return monotonic()


async def fresh_by(cache: Cache, source: Source, resource_id: str, value: str, at_s: float) -> None:
    """From that time on the node serves this value."""
    await past(at_s)
    assert await cache.get_or_load("config", resource_id, source.load, **WHERE) == value


async def travels(a: Cache, b: Cache, source: Source) -> None:
    """An invalidation of a reaches b by the bus, not by a probe."""
    observed = b.stats().bus_lag.count

    async def arrived() -> bool:
        await written(a, source, "k", "told")
        await asyncio.sleep(0.02)
        return b.stats().bus_lag.count > observed

    await until(arrived)


async def on_topic(setup: dict[str, Any]) -> list[Any]:
    """All messages of the fleet's topic; those of one partition in order."""
    settings = Settings(**setup)
    return await held(settings, settings.kafka_topic)


async def sent(setup: dict[str, Any], *letters: tuple[bytes, bytes, Iterable[tuple[str, bytes]]]) -> None:
    """Write these messages, key, value and headers, to the topic's first partition, as anybody can."""
    producer = AIOKafkaProducer(bootstrap_servers=setup["kafka_bootstrap_servers"])
    await producer.start()
    try:
        for key, value, headers in letters:
            await producer.send_and_wait(setup["kafka_topic"], value, key, partition=0, headers=list(headers))
    finally:
        await producer.stop()


async def spread(brokers: list[KafkaServer], url: str, assigned: Mapping[int, list[int]]) -> dict[str, Any]:
    """Make a topic whose partitions have these brokers as replicas, by their numbers."""
    first, second = brokers[:2]
    name, numbers = f"spread-{token_hex(4)}", {number for replicas in assigned.values() for number in replicas}
    admin = AIOKafkaAdminClient(bootstrap_servers=first.address, request_timeout_ms=5_000)
    await admin.start()
    try:

        async def all_there() -> bool:
            with suppress(KafkaError):  # by one that has just ended, and is not yet missed
                named = (await admin.describe_cluster())["brokers"]
                return {broker["node_id"] for broker in named} == numbers
            return False

        async def created() -> bool:
            with suppress(KafkaError, TimeoutError):  # whom it asks may have just come back, and be slow
                made = await admin.create_topics([NewTopic(name, -1, -1, replica_assignments=dict(assigned))])
                return made.topic_errors[0][1] in (0, EXISTS)
            return False

        async def led() -> bool:
            with suppress(KafkaError):
                (topic,) = await admin.describe_topics([name])
                return [part["leader"] for part in topic["partitions"]].count(-1) == 0
            return False

        await until(all_there, within_s=60.0)
        await until(created, within_s=60.0)
        await until(led)
    finally:
        await admin.close()
    return {
        "url": url,
        "bus": "kafka",
        "kafka_bootstrap_servers": f"{second.address},{first.address}",
        "kafka_topic": name,
        "namespace": name,
        "kafka_partitions": len(assigned),
        "shards": len(assigned),
    }


def tenant_of(cache: Cache, shard: int) -> str:
    """One whose shard it is."""
    names = (f"tenant-{number}" for number in range(1000))
    return next(name for name in names if key_of(cache, "config", "k", name).shard == shard)
