"""The workers of change data capture beside bare loops over the same changes: changes a second, and commit -> applied.

The bare loops do nothing with a change: one peeks and advances, the other reads messages and commits their offsets. A
lag of a worker ends where its change is in L2, one of a bare loop where it has read it: before either lets go of it.

This process stands for one that `cachebus worker` starts: garbage is collected as seldom as there.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import median
from typing import Final

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from pydantic import SecretStr

from cachebus import ConfigError, Settings
from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.cdc.slot.slices import PEEK
from cachebus.consumers.cdc.topics.kafka import KafkaSource, TopicsWorker
from cachebus.consumers.worker.worker import Worker, seldom_collected
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.postgres import PostgresServer
from tests.bench.rounds import p99
from tests.bench.rows import Row
from tests.bench.run import Bench
from tests.bench.scale import Scale

SINCE: Final = {"slot": "commit", "topics": "acknowledged by Kafka"}
SETUP: Final = """
CREATE TABLE orders (id bigint PRIMARY KEY, tenant_id text NOT NULL, total int NOT NULL);
CREATE PUBLICATION cachebus_cdc FOR TABLE orders;
SELECT pg_create_logical_replication_slot('bare', 'pgoutput')
"""
MANY: Final = """
INSERT INTO orders SELECT n, 'acme', 1 FROM generate_series(1, $1::int) n
ON CONFLICT (id) DO UPDATE SET total = orders.total + 1
"""
ADVANCE: Final = "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)"
POLL_S: Final = 0.002
BATCH: Final = 5000


def _rules() -> RuleFile:
    return parse_rules("""
        [[rule]]
        table = "public.orders"
        data_type = "order"
        resource_id = "{id}"
        tenant_id = "acme"
    """)


async def rows(bench: Bench) -> list[Row]:
    """Both sources; Kafka's where Kafka can be had, and not in a quick run, which its start alone would make a slow
    one."""
    with seldom_collected():
        found = await _of_the_slot(bench)
        if bench.scale == Scale.quick():
            return found
        try:
            kafka = KafkaServer()
        except ConfigError:
            return found
        return found + await _of_topics(bench, kafka)


async def _of_the_slot(bench: Bench) -> list[Row]:
    with PostgresServer() as server:
        writer, reader = await asyncpg.connect(server.url), await asyncpg.connect(server.url)
        for statement in SETUP.strip().split(";"):
            await writer.execute(statement)
        source = SlotSource(SecretStr(server.url), poll_s=POLL_S)

        def make() -> Worker:
            return SlotWorker(Settings(url=bench.server.url), _rules(), source)

        async def write(count: int) -> None:
            await writer.execute(MANY, count)

        async def bare(count: int, read: asyncio.Event) -> None:
            while count > 0:
                found = await reader.fetch(PEEK, "bare", BATCH, b"cachebus_cdc")
                if found:
                    read.set()
                    await reader.execute(ADVANCE, "bare", found[-1]["lsn"])
                    count -= sum(row["data"][:1] in (b"I", b"U") for row in found)
                else:
                    await asyncio.sleep(POLL_S)

        async with working(make()):
            pass  # the slot is there from now on
        measured = await _measured(bench, make, write, bare)
        await writer.close()
        await reader.close()
    return _told("slot", "peek and advance", *measured)


async def _of_topics(bench: Bench, kafka: KafkaServer) -> list[Row]:
    with kafka:
        topic = f"orders-{secrets.token_hex(4)}"
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
        await admin.start()
        await admin.create_topics([NewTopic(topic, 1, 1)])
        await admin.close()
        producer = AIOKafkaProducer(bootstrap_servers=kafka.address, acks="all", linger_ms=0)
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=kafka.address,
            group_id="bare",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await producer.start()
        await consumer.start()

        def make() -> Worker:
            return TopicsWorker(Settings(url=bench.server.url), _rules(), KafkaSource(kafka.address, topic))

        async def write(count: int) -> None:
            sent = [await producer.send(topic, _envelope(number)) for number in range(count)]
            await asyncio.gather(*sent)

        async def bare(count: int, read: asyncio.Event) -> None:
            while count > 0:
                found = await consumer.getmany(timeout_ms=300, max_records=BATCH)
                if found:
                    read.set()
                    await consumer.commit({part: several[-1].offset + 1 for part, several in found.items()})
                    count -= sum(map(len, found.values()))

        measured = await _measured(bench, make, write, bare)
        await consumer.stop()
        await producer.stop()
    return _told("topics", "aiokafka consumer", *measured)


def _envelope(number: int) -> bytes:
    source = {"schema": "public", "table": "orders", "ts_ms": int(wall_s() * 1000), "lsn": 1}
    return json.dumps({"op": "c", "before": None, "after": {"id": number, "total": 1}, "source": source}).encode()


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[Worker]:
    """The worker, once it works; drained at the end."""
    task = asyncio.create_task(worker.run())
    while not all(map(worker.health.is_up, worker.health.parts)):
        await asyncio.wait([task], timeout=0.001)
        if task.done():
            task.result()
    yield worker
    worker.drain()
    await task


async def _measured(
    bench: Bench,
    make: Callable[[], Worker],
    write: Callable[[int], Awaitable[None]],
    bare: Callable[[int, asyncio.Event], Awaitable[None]],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Changes a second and seconds of lag, each of ours and of the bare loop's. Both read all that is written. `bare`:
    reads so many, sets the event when it has read the first, and returns when it has let go of all."""
    rates: tuple[list[float], list[float]] = ([], [])
    lags: tuple[list[float], list[float]] = ([], [])
    flood = bench.scale.flood
    for turn in range(max(2, bench.scale.flood_rounds)):
        await write(flood)
        async with working(make()) as worker:
            had, started_s = worker.meters.count("applied"), monotonic()
            await applied(worker, flood)
            rates[0].append((flood - had) / (monotonic() - started_s))
        started_s = monotonic()
        await bare(flood, asyncio.Event())
        rates[1].append(flood / (monotonic() - started_s))
        bench.progress.step(f"flood {turn + 1}")
    async with working(make()) as worker:
        in_l2 = InL2(worker)
        for count in range(1, bench.scale.messages // 5 + 10):
            await write(1)
            started_s = monotonic()
            await in_l2.until(count)
            lags[0].append(monotonic() - started_s)
            await applied(worker, count)
            await bare(1, asyncio.Event())
    for _ in range(bench.scale.messages // 5 + 10):
        read = asyncio.Event()
        reading = asyncio.create_task(bare(1, read))
        await write(1)
        started_s = monotonic()
        await read.wait()
        lags[1].append(monotonic() - started_s)
        await reading
    return rates[0], rates[1], lags[0][10:], lags[1][10:]


class InL2:
    """How many changes a worker has brought to L2: counted where it tells of their lag, before it lets go of them."""

    def __init__(self, worker: Worker) -> None:
        self._count = 0
        self._more = asyncio.Event()
        self._tell = worker.meters.lag
        worker.meters.lag = self._told  # type: ignore[method-assign]

    def _told(self, lag_s: float, count: int = 1) -> None:
        self._tell(lag_s, count)
        self._count += count
        self._more.set()

    async def until(self, count: int) -> None:
        """When there are so many."""
        while self._count < count:
            self._more.clear()
            await self._more.wait()


async def applied(worker: Worker, count: int) -> None:
    """When it has applied so many, and let go of them."""
    done = asyncio.Event()
    counted = worker.meters.done

    def noted(outcome: str, number: int = 1) -> None:
        counted(outcome, number)
        if worker.meters.count("applied") >= count:
            done.set()

    worker.meters.done = noted  # type: ignore[method-assign]
    try:
        if worker.meters.count("applied") < count:
            await done.wait()
    finally:
        worker.meters.done = counted  # type: ignore[method-assign]


def _told(
    source: str, name: str, ours: list[float], bare: list[float], lag_s: list[float], bare_lag_s: list[float]
) -> list[Row]:
    rate, bare_rate = median(ours), median(bare)
    found = [
        Row(
            f"cdc.{source}",
            f"cdc, {source}: changes a second that a worker applies, beside a bare loop ({name})",
            rate / bare_rate,
            "x",
            None,
            {"bare loop": 1.0},
            f"{rate:,.0f}/s beside {bare_rate:,.0f}/s",
        )
    ]
    for which, figure in (("p50", median), ("p99", p99)):
        mine, theirs = figure(lag_s), figure(bare_lag_s)
        found.append(
            Row(
                f"cdc.{source}_lag_{which}",
                f"cdc, {source}: {SINCE[source]} -> applied in L2, {which}, beside read by a bare loop",
                mine * 1e3,
                "ms",
                None,
                {"bare loop": theirs * 1e3},
            )
        )
    return found
