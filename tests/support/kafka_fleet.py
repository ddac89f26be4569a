"""Caches whose events go by Kafka: what tests do with them, and how they see whether the bus was quick."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaProducer

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.bus import KafkaBus
from tests.support.caches import Source, parts, past, until
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
