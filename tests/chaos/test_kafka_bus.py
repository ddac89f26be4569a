"""What Kafka may do to events, and what becomes of the promises: named by fault and promise.

The broker is everybody's: what is done to it here is undone before a test ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from secrets import token_hex
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cachebus import Cache
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.envelope import message_key
from cachebus.errors import L2Unavailable
from cachebus.producers import DirectProducer
from cachebus.resp import ended
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import free_port
from tests.support.caches import D_S, Source, nodes, past, quick, until
from tests.support.events import event_of
from tests.support.kafka_fleet import QUICK_S, WHERE, bus_of, fresh_by, shared, travels, written
from tests.support.logs import told


@pytest.fixture
def setup(redis_url: str, kafka: KafkaServer) -> dict[str, Any]:
    """The settings of a fleet with a topic and a namespace of its own."""
    name = f"chaos-{token_hex(4)}"
    return {
        "url": redis_url,
        "bus": "kafka",
        "kafka_bootstrap_servers": kafka.address,
        "kafka_topic": name,
        "namespace": name,
        "kafka_partitions": 1,
    }


@pytest.fixture
async def fleet(setup: dict[str, Any]) -> AsyncIterator[list[Cache]]:
    """Two nodes."""
    async with nodes(setup.pop("url"), **setup) as caches:
        yield caches


async def test_g1_g9_kafka_broker_killed_and_restarted(fleet: list[Cache], kafka: KafkaServer) -> None:
    a, b = fleet
    source = await shared(a, b, "k")
    await travels(a, b, source)
    try:
        await asyncio.to_thread(kafka.kill)
        at_s = await written(a, source, "k", "new")
        await fresh_by(b, source, "k", "new", at_s + D_S)
        await until(lambda: not a.stats().bus_connected and not b.stats().bus_connected)
        at_s = await written(a, source, "k", "newer")
        await fresh_by(b, source, "k", "newer", at_s + D_S)
        await until(lambda: a.stats().bus_publish_failures > 0)
        assert a.stats().flushes == b.stats().flushes == {"start": 1}  # the log in L2 told each that was missed
    finally:
        await asyncio.to_thread(kafka.start)
    await until(lambda: a.stats().bus_connected and b.stats().bus_connected)
    await travels(a, b, source)


async def test_g1_g9_kafka_broker_hangs(
    fleet: list[Cache], kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGSTOP: connections stay open, nothing is answered. It is told once, and not by the driver."""
    a, b = fleet
    source = await shared(a, b, "k")
    caplog.set_level(logging.INFO)
    kafka.pause()
    with told() as lines:
        try:
            at_s = await written(a, source, "k", "new")
            await fresh_by(b, source, "k", "new", at_s + D_S)
            await until(lambda: not a.stats().bus_connected and not b.stats().bus_connected)
            at_s = await written(a, source, "k", "newer")
            await fresh_by(b, source, "k", "newer", at_s + D_S)
        finally:
            kafka.resume()
            await until(lambda: a.stats().bus_connected and b.stats().bus_connected)
    await travels(a, b, source)
    assert sum("could not be published" in line for line in lines) == 1, lines
    assert len(lines) <= 10, lines
    assert not [record for record in caplog.records if record.name.startswith("aiokafka")]
    gc.collect()  # now the loop is told of failures that nobody asked for, and the test fails by them


async def test_g1_g9_kafka_retention_loss(fleet: list[Cache], kafka: KafkaServer, setup: dict[str, Any]) -> None:
    """What comes next has been deleted: the node goes on at the end, and reads the log in L2 for what it missed."""
    a, b = fleet
    source = await shared(a, b, "k")
    await travels(a, b, source)
    topic = TopicPartition(setup["kafka_topic"], 0)
    at_s = await written(a, source, "k", "new")
    await fresh_by(b, source, "k", "new", at_s + D_S)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    try:
        await admin.delete_records({topic: RecordsToDelete(before_offset=-1)})
    finally:
        await admin.close()
    bus_of(b)._ears._ears[0].position = 0  # type: ignore[union-attr]  # as of a node that is far behind
    await until(lambda: b.stats().bus_positions_lost == 1)
    await travels(a, b, source)
    assert b.stats().flushes == {"start": 1}
    assert (b.stats().bus_positions_lost, b.stats().reconnects) == (1, 0)


async def test_g1_messages_doubled_and_swapped(fleet: list[Cache]) -> None:
    """As by two publishers of which the second is faster, and a producer that says all twice."""
    a, b = fleet
    source = await shared(a, b, *(f"k{number}" for number in range(20)))
    publish, kept = bus_of(a).publish, list[tuple[int, bytes]]()

    async def swapped(shard: int, message: bytes) -> None:
        kept.append((shard, message))
        if len(kept) == 2:
            for one in (*reversed(kept), *kept):
                await publish(*one)
            kept.clear()

    bus_of(a).publish = swapped  # type: ignore[method-assign]
    for number in range(20):
        at_s = await written(a, source, f"k{number}", "new")
    for number in range(20):
        await fresh_by(b, source, f"k{number}", "new", at_s + D_S)
    await until(lambda: b.stats().events_repeated >= 20)
    assert b.stats().gaps > 0
    assert b.stats().flushes == {"start": 1}


async def test_g1_publisher_killed_between_l2_and_kafka(fleet: list[Cache], setup: dict[str, Any]) -> None:
    """L2 has it, Kafka never will: the probe finds it within D, and reads exactly that one event."""
    a, b = fleet
    source = await shared(a, b, "k", "other")

    async def killed(shard: int, message: bytes) -> None:
        return None

    bus_of(a).publish = killed  # type: ignore[method-assign]
    at_s = await written(a, source, "k", "new")
    await fresh_by(b, source, "k", "new", at_s + D_S)
    assert b.stats().catch_ups > 0
    calls = source.calls
    await fresh_by(b, source, "other", "old", at_s)
    assert source.calls == calls  # a flush would have had it loaded again


async def test_g1_g9_garbage_on_the_topic(fleet: list[Cache], kafka: KafkaServer, setup: dict[str, Any]) -> None:
    """None of it stops a partition; what claims to be one of ours is counted."""
    a, b = fleet
    source = await shared(a, b, "k")
    topic, namespace, epoch = setup["kafka_topic"], setup["namespace"], b"0123456789abcdef"
    ours = message_key(namespace, 0, epoch)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.address)
    await producer.start()
    try:
        for key, value in [
            (ours, b"garbage"),
            (ours, None),
            (ours, b"x" * 500_000),
            (ours, b"CBW\xff"),
            (b"\xff", b"?"),
            (b"k", None),
            (message_key("another", 0, epoch), b"theirs"),
            (message_key(namespace, 7, epoch), b"no shard of ours"),
            (f"{namespace}:0".encode(), b"no epoch"),
            (b"x" + ours, b"theirs"),
            (ours + b":", b"one colon more"),
            (None, b"no key"),
            (b"", b"no key"),
        ]:
            await producer.send_and_wait(topic, value, key)
    finally:
        await producer.stop()
    await travels(a, b, source)
    assert b.stats().messages_unknown == 3
    assert b.stats().bus_connected


async def test_g1_partitions_are_added(setup: dict[str, Any], kafka: KafkaServer, monkeypatch: Any) -> None:
    """Who publishes and who listens learn of it at different times; nothing is lost for good."""
    monkeypatch.setattr("cachebus.bus.kafka.watch.METADATA_AGE_S", 0.1)
    async with nodes(setup.pop("url"), shards=3, **setup) as (a, b):
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
        await admin.start()
        try:
            await admin.create_partitions({setup["kafka_topic"]: NewPartitions(3)})
        finally:
            await admin.close()
        await until(lambda: b.stats().bus_connected and len(bus_of(b)._ears.reaches) == 3)  # type: ignore[union-attr]
        sender = AIOKafkaProducer(bootstrap_servers=kafka.address)
        await sender.start()
        try:
            assert await sender.partitions_for(setup["kafka_topic"]) == {0, 1, 2}
            corrupt = b.stats().events_corrupt
            damaged = event_of(b"f" * 16, 1)[:-1]
            for shard in range(3):
                key = message_key(setup["namespace"], shard, b"")
                await sender.send_and_wait(setup["kafka_topic"], damaged, key, partition=shard)
        finally:
            await sender.stop()
        await until(lambda: b.stats().events_corrupt == corrupt + 3)
        assert a.stats().bus_connected


async def configured(kafka: KafkaServer, topic: str, **settings: str) -> None:
    """Have the broker hold the topic to these, with dots for underscores."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    try:
        configs = {name.replace("_", "."): value for name, value in settings.items()}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)])
    finally:
        await admin.close()


async def test_g1_messages_that_the_broker_refuses_cost_nothing_but_themselves(
    fleet: list[Cache], kafka: KafkaServer, setup: dict[str, Any]
) -> None:
    """As without the right to write, under a policy, or by a clock that is off: who sends stays, and nobody is deaf."""
    a, b = fleet
    source = await shared(a, b, "k")
    await travels(a, b, source)
    bus = bus_of(a)
    (lane,) = bus._sender._lanes.values()
    connection, deaf = lane.connection, asyncio.create_task(bus.deaf(0))
    try:
        await configured(
            kafka, setup["kafka_topic"], message_timestamp_after_max_ms="0", message_timestamp_before_max_ms="0"
        )

        async def refused() -> bool:
            await a.invalidate("config", "other", **WHERE)
            return a.stats().bus_publish_failures > 10

        await until(refused)
        at_s = await written(a, source, "k", "new")
        await fresh_by(b, source, "k", "new", at_s + D_S)
        hour_ms = "3600000"
        await configured(
            kafka, setup["kafka_topic"], message_timestamp_after_max_ms=hour_ms, message_timestamp_before_max_ms=hour_ms
        )
        await travels(a, b, source)
        assert lane.connection is connection and not deaf.done()
        assert a.stats().reconnects == b.stats().reconnects == 0
    finally:
        await ended(deaf)


async def test_g1_who_can_send_nothing_is_not_deaf_and_comes_back_by_himself(fleet: list[Cache]) -> None:
    a, b = fleet
    source = await shared(a, b, "k")
    bus = bus_of(a)
    deaf = asyncio.create_task(bus.deaf(0))
    try:
        (lane,) = bus._sender._lanes.values()
        for _ in range(3):
            lost = lane.connection
            assert lost is not None
            await lost.close()
            await until(lambda lost=lost: lane.connection not in (None, lost) and a.stats().bus_connected)
        await travels(a, b, source)
        assert not deaf.done()
        assert a.stats().reconnects == 0
    finally:
        await ended(deaf)


async def test_waiters_poll_for_a_lease_since_nothing_wakes_them(fleet: list[Cache]) -> None:
    a, b = fleet
    source = Source(k="value")
    source.hold()
    first = asyncio.create_task(a.get_or_load("config", "k", source.load, **WHERE))
    await source.asked.wait()
    second = asyncio.create_task(b.get_or_load("config", "k", source.load, **WHERE))
    await asyncio.sleep(0.05)
    began_s = monotonic()
    source.release()
    assert await asyncio.gather(first, second) == ["value", "value"]
    assert monotonic() - began_s < 0.5
    assert source.calls == 1


async def test_a_producer_publishes_on_kafka_and_waits_for_no_broker(setup: dict[str, Any], kafka: KafkaServer) -> None:
    async with Cache(quick(**setup)) as cache, DirectProducer.open(quick(**setup)) as producer:
        source = await shared(cache, cache, "k")

        async def published(value: str) -> bool:
            source.values["k"] = value
            await producer.invalidate("config", "k", **WHERE)
            await asyncio.sleep(0.02)
            return cache.stats().bus_lag.count > 0

        await until(lambda: published("told"))
        kafka.pause()
        try:
            source.values["k"] = "new"
            began_s = monotonic()
            await producer.invalidate("config", "k", **WHERE)
            assert monotonic() - began_s < QUICK_S
            await fresh_by(cache, source, "k", "new", monotonic() + D_S)
        finally:
            kafka.resume()


async def test_a_broker_that_is_not_there_is_refused_by_its_address_or_waited_for(setup: dict[str, Any]) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    setup |= {"kafka_bootstrap_servers": nowhere, "connect_timeout_s": 1.0}
    with pytest.raises(L2Unavailable, match=nowhere):
        async with Cache(quick(**setup)):
            pass
    async with Cache(quick(**{**setup, "start_degraded": True})) as cache:
        await until(cache.ready)  # L2 is there, and its probes keep the promises
        assert not cache.stats().bus_connected
        assert await cache.get_or_load("config", "k", Source(k="value").load, **WHERE) == "value"


async def test_closing_while_the_broker_hangs_takes_no_longer_than_time_outs(
    setup: dict[str, Any], kafka: KafkaServer
) -> None:
    cache = Cache(quick(**setup))
    async with cache:
        kafka.pause()
        await cache.invalidate("config", "k", **WHERE)
        began_s = monotonic()
    kafka.resume()
    assert monotonic() - began_s < 3.0


async def test_closing_while_it_reconnects_to_a_broker_that_hangs_leaves_nothing(
    setup: dict[str, Any], kafka: KafkaServer
) -> None:
    """The heartbeat is cancelled in the middle of connecting; the fixtures look for tasks that are left."""
    cache = Cache(quick(**setup))
    async with cache:
        kafka.pause()
        await until(lambda: not cache.stats().bus_connected)
        await past(monotonic() + 0.3)
        began_s = monotonic()
    kafka.resume()
    assert monotonic() - began_s < 3.0


async def test_nodes_of_another_bus_are_refused(fleet: list[Cache], redis_url: str, setup: dict[str, Any]) -> None:
    from cachebus.errors import ProtocolMismatch

    with pytest.raises(ProtocolMismatch, match="bus=kafka"):
        async with Cache(quick(redis_url, namespace=setup["namespace"])):
            pass
