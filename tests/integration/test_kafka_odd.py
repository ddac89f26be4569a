"""The bus over Kafka where a broker, or somebody who writes to the topic, does something odd; and closing it."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from secrets import token_hex
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.admin import CreateTopicsRequest
from aiokafka.record._crc32c import crc as crc32c

from cachebus import BusUnavailable, ConfigError, Settings
from cachebus.assembly.backends import kafka_bus
from cachebus.base import strangers
from cachebus.base.clock import monotonic
from cachebus.bus.kafka import ears, sender
from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.bus import KafkaBus
from cachebus.bus.kafka.client import kafka_access
from cachebus.bus.kafka.connection import BrokerAddress, KafkaConnection, addresses_of
from cachebus.bus.kafka.ear import Ear
from cachebus.bus.kafka.ears import KafkaEars
from cachebus.bus.kafka.envelope import Envelope
from cachebus.bus.kafka.inflating import MOST_BYTES
from cachebus.bus.kafka.reach import Reach
from cachebus.bus.kafka.topic import ensure, read_layout
from cachebus.observe import Counters
from cachebus.resp import names
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.wire import event as events
from tests.support.caches import quick, until
from tests.support.kafka_batches import CODECS, batch_of, keep

EPOCH = b"e" * 16
INFLATED_BYTES = 4 * MOST_BYTES


@pytest.fixture
def setup(redis_url: str, kafka: KafkaServer) -> Settings:
    """Settings of a topic with one partition."""
    name = f"odd-{token_hex(4)}"
    return quick(
        redis_url,
        bus="kafka",
        kafka_bootstrap_servers=kafka.address,
        kafka_topic=name,
        namespace=name,
        kafka_partitions=1,
    )


@asynccontextmanager
async def opened(setup: Settings, counters: Counters | None = None) -> AsyncIterator[tuple[KafkaBus, list[bytes]]]:
    """A bus that listens, and what it hears."""
    heard: list[bytes] = []
    bus = kafka_bus(setup, monotonic, lambda shard, message: heard.append(message), counters or Counters())
    await bus.connect()
    try:
        yield bus, heard
    finally:
        await bus.close()


def event(seq: int, size: int = 1) -> bytes:
    """One that a node may have published."""
    return events.encode(EPOCH, seq, 0, events.encode_body([events.WritePart([f"k{seq}" * size], [])]))


async def send(setup: Settings, batch: bytes) -> None:
    """Have the broker keep this batch, whatever is in it."""
    await keep(setup, setup.kafka_topic, batch)


def misnamed(name: bytes) -> bytes:
    """A batch of one message, which has a header of this name of six bytes."""
    builder: Any = BatchBuilder(10**6, 0)
    builder.append(timestamp=None, key=None, value=b"x", headers=[("ZZZZZZ", b"v")])
    data = bytes(builder._build()).replace(b"ZZZZZZ", name)
    return data[:17] + struct.pack(">I", crc32c(data[21:])) + data[21:]


async def test_a_message_that_cant_be_read_is_passed_over_and_counted(setup: Settings) -> None:
    counters = Counters()
    async with opened(setup, counters) as (bus, heard):
        for seq in range(1, 6):
            await bus.publish(0, event(seq))
            await until(lambda seq=seq: len(heard) == seq)
            await send(setup, misnamed(b"\xff" * 6))
        await until(lambda: counters.events_corrupt == 5)
        assert bus.connected
        assert counters.bus_positions_lost == 0


@CODECS
async def test_a_batch_that_inflates_to_too_much_is_passed_over_and_never_made(setup: Settings, codec: int) -> None:
    counters = Counters()
    bomb = batch_of(codec, bytes(INFLATED_BYTES))
    async with opened(setup, counters) as (bus, heard):
        await bus.publish(0, event(1))
        await until(lambda: len(heard) == 1)
        tracemalloc.start()
        try:
            await send(setup, bomb)
            await until(lambda: counters.events_corrupt == 1)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < INFLATED_BYTES
        await bus.publish(0, event(2))
        await until(lambda: len(heard) == 2)
        assert bus.connected
        assert counters.bus_positions_lost == 0


@CODECS
async def test_compressed_events_are_heard(setup: Settings, codec: int) -> None:
    values = [event(seq, size=1000) for seq in range(1, 1001)]
    envelope = Envelope.of(setup)
    key, _ = envelope.around(0, values[0])
    async with opened(setup) as (_, heard):
        await send(setup, batch_of(codec, *values, key=key))
        await until(lambda: len(heard) == len(values))
        assert heard == values


async def test_a_partition_with_a_flood_to_read_keeps_no_other_of_its_leader_waiting(
    setup: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, over = KafkaEars._read, asyncio.Event()

    async def long(ears: KafkaEars, ear: Ear, *what: Any) -> None:
        if ear.number == 0:
            await over.wait()
        await read(ears, ear, *what)

    monkeypatch.setattr(KafkaEars, "_read", long)
    two = setup.model_copy(update={"kafka_partitions": 2, "shards": 2})
    async with opened(two) as (bus, heard):
        await bus.publish(0, event(1))
        await until(lambda: any(ear.reading for ear in ears_of(bus)))
        for seq in range(2, 12):
            await bus.publish(1, event(seq))
            await until(lambda seq=seq: len(heard) == seq - 1)
        await bus.publish(0, event(12))
        over.set()
        await until(lambda: len(heard) == 12)
        assert [events.position_of(message)[1] for message in heard] == [*range(2, 12), 1, 12]


async def test_while_events_trickle_in_a_fetch_of_many_partitions_is_followed_by_a_rest(
    setup: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fetch names them all. Here one counts as many."""
    monkeypatch.setattr(ears, "FEW", 0)
    monkeypatch.setattr(ears, "CALM_S", 0.2)
    fetched, fetch = 0, KafkaEars._fetch

    async def counted(*args: Any) -> None:
        nonlocal fetched
        fetched += 1
        await fetch(*args)

    monkeypatch.setattr(KafkaEars, "_fetch", counted)
    async with opened(setup) as (bus, heard):
        began_s = monotonic()
        for seq in range(1, 101):
            await bus.publish(0, event(seq))
            await bus._sender.flush()
        await until(lambda: len(heard) == 100)
        assert fetched < 5 + (monotonic() - began_s) / 0.2


async def test_closing_ends_what_is_read_still(setup: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(KafkaEars, "_read", never)
    async with opened(setup) as (bus, _):
        await bus.publish(0, event(1))
        await until(lambda: any(ear.reading for ear in ears_of(bus)))
        (reading,) = [ear.reading for ear in ears_of(bus)]
    assert reading is not None
    assert reading.cancelled()


async def test_a_broker_of_another_kafka_is_passed_over_while_ours_hangs(
    setup: Settings, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that was given to it by now. Nothing is made there, and no event goes there."""
    other = KafkaServer()
    with await asyncio.to_thread(other.start):
        access = kafka_access(setup)
        found = Brokers(access)
        layout = await ensure(access, found)
        found.know([*layout.brokers, *addresses_of(other.address)])
        await asyncio.to_thread(kafka.pause)
        try:
            with pytest.raises(BusUnavailable, match="another Kafka cluster"):
                await read_layout(access, found)
            monkeypatch.setattr(strangers, "BELIEVED_S", 0.0)
            with pytest.raises(BusUnavailable, match="another Kafka cluster"):
                await read_layout(access, found)  # at none of the addresses of the settings
        finally:
            await asyncio.to_thread(kafka.resume)
            await found.forget()


async def test_a_brokers_name_that_nobody_answers_for_takes_none_of_the_applications_threads(
    setup: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    async def silent(host: str) -> list[str]:
        asked.append(host)
        await asyncio.Event().wait()
        return []

    async def by_the_loop(host: str, *_: Any, **__: Any) -> Any:
        raise AssertionError(host)

    monkeypatch.setattr(names, "addresses_of", silent)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", by_the_loop)
    access = replace(kafka_access(setup), connect_timeout_s=0.05)
    with pytest.raises(TimeoutError, match=r"broker\.test:9092 did not answer"):
        await KafkaConnection.open(access, BrokerAddress("broker.test", 9092))
    assert asked == ["broker.test"]


def ears_of(bus: KafkaBus) -> list[Ear]:
    """One for each partition."""
    assert bus._ears is not None
    return bus._ears._ears


async def test_what_is_too_large_together_goes_in_parts(setup: Settings) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=setup.kafka_bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(setup.kafka_topic, 1, 1, topic_configs={"max.message.bytes": "4000"})])
    await admin.close()
    counters = Counters()
    async with opened(setup, counters) as (bus, heard):
        for seq in range(1, 201):
            await bus.publish(0, event(seq))
        await bus.publish(0, event(201, size=4000))
        await bus.publish(0, event(202))
        await until(lambda: len(heard) == 201)
        assert [events.position_of(message)[1] for message in heard] == [*range(1, 201), 202]
        assert counters.bus_publish_failures == 1


async def test_what_waits_is_bounded_in_bytes_by_partition_and_what_is_beyond_is_counted(
    setup: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MOST_BYTES", 200_000)
    counters = Counters()
    two = setup.model_copy(update={"kafka_partitions": 2, "shards": 2})
    async with opened(two, counters) as (bus, heard):
        for seq in range(20):
            await bus.publish(0, event(seq, size=10_000))  # nothing of it is sent before this waits for something
        await bus.publish(1, event(20))
        taken = len(bus._sender._queues[0].waiting)
        assert 1 < taken < 10
        assert counters.bus_publish_failures == 20 - taken
        await until(lambda: len(heard) == taken + 1)
        assert bus._sender._queues[0].size_bytes == 0
        await bus.publish(0, event(21, size=100_000))  # more than may wait, but alone
        await until(lambda: len(heard) == taken + 2)
        assert counters.bus_publish_failures == 20 - taken


@pytest.mark.parametrize("turns", range(1, 16))
async def test_closing_that_is_cancelled_leaves_nothing(setup: Settings, turns: int) -> None:
    bus = kafka_bus(setup, monotonic, lambda shard, message: None, Counters())
    await bus.connect()
    await bus.publish(0, event(1))
    closing = asyncio.create_task(bus.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await until(
        lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("cachebus-kafka")], within_s=5
    )


async def test_a_broker_that_answers_nonsense_is_passed_by(setup: Settings) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(4):
            body = await reader.readexactly(struct.unpack(">i", head)[0])
            writer.write(struct.pack(">i", 12) + body[4:8] + b"\x7f" * 8)
        writer.close()

    async with await asyncio.start_server(nonsense, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        servers = f"127.0.0.1:{port},{setup.kafka_bootstrap_servers}"
        async with opened(setup.model_copy(update={"kafka_bootstrap_servers": servers})) as (bus, heard):
            await bus.publish(0, event(1))
            await until(lambda: heard)
        alone = setup.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{port}"})
        with pytest.raises(BusUnavailable, match=f"Kafka at 127.0.0.1:{port}: "):
            async with opened(alone):
                pass


def refused(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The brokers' answers when a topic is made have this code."""

    def altered(asks: Any) -> Any:
        async def asked(*where: Any) -> Any:
            answer = await asks(*where)
            if isinstance(where[-1], CreateTopicsRequest):
                answer.topic_errors = [(name, code, *more) for name, _, *more in answer.topic_errors]
            return answer

        return asked

    for way in ("ask", "ask_at"):
        monkeypatch.setattr(Brokers, way, altered(getattr(Brokers, way)))


@pytest.mark.parametrize("code", [5, 7, 14, 15, 16, 38, 41, 89, -1])
async def test_what_passes_when_the_topic_is_made_is_no_error_of_settings(
    setup: Settings, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    bus = kafka_bus(setup, monotonic, lambda shard, message: None, Counters())
    try:
        with monkeypatch.context() as patched:
            refused(patched, code)
            with pytest.raises(BusUnavailable, match="can't be made now"):
                await bus.connect()
        await bus.connect()
        assert bus.connected
    finally:
        await bus.close()


@pytest.mark.parametrize("code", [17, 29, 31, 37, 40, 44])
async def test_what_will_never_be_let_when_the_topic_is_made_is_an_error_of_settings(
    setup: Settings, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refused(monkeypatch, code)
    bus = kafka_bus(setup, monotonic, lambda shard, message: None, Counters())
    try:
        with pytest.raises(ConfigError, match=r"kafka-topics.sh .*--create"):
            await bus.connect()
    finally:
        await bus.close()


async def test_who_waits_for_a_partition_that_is_removed_is_told(setup: Settings) -> None:
    reach = Reach(kafka_access(setup), monotonic)
    waiting = asyncio.create_task(reach.gain())
    await asyncio.sleep(0)
    reach.end("the topic has fewer partitions")
    with pytest.raises(BusUnavailable, match="fewer partitions"):
        await waiting
    with pytest.raises(BusUnavailable, match="fewer partitions"):
        await reach.gain()
