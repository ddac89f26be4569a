"""Commands through Kafka beside a bare aiokafka: commands a second of the worker, and sent -> applied on three nodes.

The bare consumer does nothing with a message but commit its offset.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from cachebus.consumers.kafka import CommandsWorker
from cachebus.producers import KafkaProducer
from cachebus.producers.command import Invalidate, encode
from cachebus.tools.servers.kafka import KafkaServer
from tests.bench.cdc import applied, working
from tests.bench.other_node import Arrivals
from tests.bench.rounds import p99
from tests.bench.rows import Row, at_least, at_most
from tests.bench.run import Bench

NODES: Final = 3
BATCH: Final = 2000
WARM: Final = 20


async def rows(bench: Bench, kafka: KafkaServer) -> list[Row]:
    """Ours and the bare ones in turn."""
    name = f"commands-{secrets.token_hex(4)}"
    settings = Settings(
        url=bench.server.url,
        namespace=name,
        kafka_commands_topic=name,
        kafka_bootstrap_servers=kafka.address,
        kafka_partitions=1,
    )
    async with _bare(kafka.address, name) as bare:
        measured = Measured(bench, settings, bare)
        return [await measured.throughput(), *await measured.lag()]


@asynccontextmanager
async def _bare(address: str, topic: str) -> AsyncIterator[tuple[Any, Any]]:
    """A producer, and a consumer with a group of its own."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True, linger_ms=0)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=address, group_id="bare", enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await producer.start()
    await consumer.start()
    try:
        yield producer, consumer
    finally:
        await consumer.stop()
        await producer.stop()


class Measured:
    """Both ends of both ways, in this process."""

    def __init__(self, bench: Bench, settings: Settings, bare: tuple[Any, Any]) -> None:
        self._bench, self._settings = bench, settings
        self._producer, self._consumer = bare

    async def _read(self, count: int) -> None:
        """By the bare consumer: so many."""
        while count > 0:
            found = await self._consumer.getmany(timeout_ms=300, max_records=BATCH)
            if found:
                await self._consumer.commit({part: several[-1].offset + 1 for part, several in found.items()})
                count -= sum(map(len, found.values()))

    async def throughput(self) -> Row:
        """Many commands that wait, until they are applied and committed."""
        ours: list[float] = []
        bare: list[float] = []
        flood, topic = self._bench.scale.flood, self._settings.kafka_commands_topic
        for turn in range(max(2, self._bench.scale.flood_rounds)):
            commands = [
                encode(Invalidate(tenant_id="acme", data_type="config", resource_id=f"agent-{number}"))
                for number in range(flood)
            ]
            sent = [await self._producer.send(topic, command, key=b"acme") for command in commands]
            await asyncio.gather(*sent)
            async with working(CommandsWorker(self._settings)) as worker:
                started_s = monotonic()
                await applied(worker, flood)
                ours.append(flood / (monotonic() - started_s))
            started_s = monotonic()
            await self._read(flood)
            bare.append(flood / (monotonic() - started_s))
            self._bench.progress.step(f"flood {turn + 1}")
        return Row(
            "commands.rate",
            "commands a second that a worker applies, beside a bare aiokafka consumer",
            median(ours) / median(bare),
            "x",
            at_least(0.25),
            {"aiokafka": 1.0},
            f"{median(ours):,.0f}/s beside {median(bare):,.0f}/s",
        )

    async def lag(self) -> list[Row]:
        """One command at a time: until every node has applied it; and until the bare consumer has it."""
        ours: list[float] = []
        bare: list[float] = []
        count = self._bench.scale.messages // 5 + WARM
        async with AsyncExitStack() as stack:
            producer = await stack.enter_async_context(KafkaProducer.open(self._settings))
            heard = [await self._node(stack) for _ in range(NODES)]
            await stack.enter_async_context(working(CommandsWorker(self._settings)))
            for _ in range(count):
                seq = heard[0][0].stats().shards[0].applied + 1
                started_s = monotonic()
                await producer.invalidate("config", "agent-1", "acme")
                ours.append(max([(await arrivals.until(seq))[seq] for _, arrivals in heard]) - started_s)
            self._bench.progress.step("ours")
        await self._read(count)
        for _ in range(count):
            reading = asyncio.create_task(self._read(1))
            started_s = monotonic()
            await self._producer.send_and_wait(self._settings.kafka_commands_topic, b"{}", key=b"acme")
            await reading
            bare.append(monotonic() - started_s)
        return [self._lag(which, of(ours[WARM:]), of(bare[WARM:])) for which, of in (("p50", median), ("p99", p99))]

    async def _node(self, stack: AsyncExitStack) -> tuple[Cache, Arrivals]:
        cache = await stack.enter_async_context(Cache.open(self._settings))
        arrivals = Arrivals()
        cache.on_applied = lambda shard, epoch, seq, at_s: arrivals.arrived(seq, at_s)
        return cache, arrivals

    def _lag(self, which: str, ours_s: float, bare_s: float) -> Row:
        return Row(
            f"commands.lag_{which}",
            f"command sent -> applied on {NODES} nodes, {which}: share of aiokafka's produce -> consume and commit",
            ours_s / bare_s,
            "x",
            at_most(2.5),
            {"aiokafka": 1.0},
            f"{ours_s * 1e3:.2f} ms beside {bare_s * 1e3:.2f}",
        )
