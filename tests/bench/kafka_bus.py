"""How soon another process has applied an invalidation over Kafka: beside a bare aiokafka, and beside the Redis bus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from cachebus.tools.servers.kafka import KafkaServer
from tests.bench import commands
from tests.bench.children import Talk, talking
from tests.bench.invalidations import PAYLOAD_BYTES
from tests.bench.kafka_other import TOPIC, listening, settings
from tests.bench.other_node import Arrivals
from tests.bench.rounds import p99
from tests.bench.rows import Row, at_most
from tests.bench.run import Bench

BLOCK: Final = 25
"""Messages of one kind in a row."""

Send = Callable[[int], Awaitable[tuple[int, float]]]
"""Sends the message of a number, waiting for nobody's answer but L2's; the number that it has there, and when it
began."""


async def rows(bench: Bench) -> list[Row]:
    """What goes over Kafka: the bus, and commands."""
    with KafkaServer() as kafka:
        return [*await _of_the_bus(bench, kafka), *await commands.rows(bench, kafka)]


async def _of_the_bus(bench: Bench, kafka: KafkaServer) -> list[Row]:
    """All three ways in turn, block by block. Each message is sent when the one before it has arrived."""
    async with AsyncExitStack() as stack:
        await _topic(kafka.address)
        bare = AIOKafkaProducer(bootstrap_servers=kafka.address, acks="all", enable_idempotence=True)
        await bare.start()
        stack.push_async_callback(bare.stop)
        url = bench.server.url
        # In both processes, as with nodes: each hears its own, too.
        await stack.enter_async_context(listening(kafka.address, Arrivals()))
        other = await stack.enter_async_context(talking("tests.bench.kafka_other", url, kafka.address))
        over_kafka = await stack.enter_async_context(Cache.open(settings(url, kafka.address)))
        over_redis = await stack.enter_async_context(Cache.open(Settings(url=url, namespace="redis")))
        assert await other.hear() == "ready"
        ways: dict[str, Send] = {
            "kafka": partial(_invalidated, over_kafka),
            "redis": partial(_invalidated, over_redis),
            "bare": partial(_produced, bare),
        }
        return _told(await _raced(bench, ways, other))


async def _topic(address: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(TOPIC, 1, 1)])
    finally:
        await admin.close()


async def _raced(bench: Bench, ways: dict[str, Send], other: Talk) -> dict[str, list[float]]:
    took_s: dict[str, list[float]] = {who: [] for who in ways}
    for first in range(0, bench.scale.messages // 5 + BLOCK, BLOCK):
        for who, send in ways.items():
            for number in range(first, first + BLOCK):
                place, started_s = await send(number)
                arrived = await other.ask(who=who, until=place)
                if first:  # the first block is to warm up
                    took_s[who].append(arrived[str(place)] - started_s)
        bench.progress.step(f"message {first}")
    return took_s


async def _invalidated(cache: Cache, number: int) -> tuple[int, float]:
    started_s = monotonic()
    receipt = await cache.invalidate("agent_config", f"agent-{number % 100}", "acme")
    return receipt.seq, started_s


async def _produced(producer: Any, number: int) -> tuple[int, float]:
    started_s = monotonic()
    await producer.send(TOPIC, b"%0*d" % (PAYLOAD_BYTES, number), partition=0)
    return number, started_s


def _told(took_s: dict[str, list[float]]) -> list[Row]:
    found = []
    for which, figure in (("p50", median), ("p99", p99)):
        ours_s, bare_s, redis_s = (figure(took_s[who]) for who in ("kafka", "bare", "redis"))
        found.append(
            Row(
                f"kafka.applied_{which}",
                f"invalidate -> applied in another process over Kafka, {which}: share of aiokafka's produce -> consume",
                ours_s / bare_s,
                "x",
                at_most(1.5),
                {"aiokafka": 1.0, "the Redis bus": redis_s / bare_s},
                f"{ours_s * 1e3:.2f} ms beside {bare_s * 1e3:.2f}; over Redis {redis_s * 1e3:.2f}",
            )
        )
    return found
