"""A link to the broker over which a whole fetch takes longer than a node waits: less is asked for, and all is heard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from secrets import token_hex
from typing import Any, Self

import pytest

from cachebus import Settings
from cachebus.assembly.backends import kafka_bus
from cachebus.base.clock import monotonic
from cachebus.bus.kafka import brokers, ears
from cachebus.bus.kafka.client import KafkaAccess
from cachebus.bus.kafka.connection import BrokerAddress, KafkaConnection
from cachebus.bus.kafka.envelope import Envelope
from cachebus.bus.kafka.portion import FETCH_BYTES, Portion
from cachebus.observe import Counters
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.wire import event as events
from tests.support.caches import quick, until
from tests.support.kafka_batches import batch_of, keep
from tests.support.slow_link import SlowLink

EPOCH = b"e" * 16
PATIENCE_S = 0.5 + ears.FETCH_WAIT_S
RATE = 300_000
UPLINK = 3_000
BATCHES_BYTES = 720_000
"""More than comes in time, by far."""


@pytest.fixture
async def link(kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SlowLink]:
    """By which ears reach the broker, wherever they are told that it is."""

    class Through(KafkaConnection):
        @classmethod
        async def open(cls, access: KafkaAccess, address: BrokerAddress) -> Self:
            connection = await super().open(access, BrokerAddress(address.host, slow.port))
            connection.address = address
            return connection

    async with SlowLink(kafka.port, down=RATE) as slow:
        monkeypatch.setattr(brokers, "KafkaConnection", Through)
        yield slow


@pytest.fixture
def portions(monkeypatch: pytest.MonkeyPatch) -> list[Portion]:
    """Those of all leaders."""
    made: list[Portion] = []

    def noted() -> Portion:
        made.append(Portion())
        return made[-1]

    monkeypatch.setattr(ears, "Portion", noted)
    return made


def setup_of(url: str, kafka: KafkaServer, partitions: int, **more: Any) -> Settings:
    """Settings of a topic and a namespace of the test's own."""
    name = f"slow-{token_hex(4)}"
    return quick(
        url,
        bus="kafka",
        kafka_bootstrap_servers=kafka.address,
        kafka_topic=name,
        namespace=name,
        kafka_partitions=partitions,
        shards=partitions,
        l2_timeout_s=0.5,
        **more,
    )


def batches(setup: Settings, size_bytes: int) -> list[tuple[int, bytes]]:
    """Batches of one event, each so large, and the shards that they are of."""
    envelope = Envelope.of(setup)
    found: list[tuple[int, bytes]] = []
    for seq in range(BATCHES_BYTES // size_bytes):
        shard = seq % setup.shards
        body = events.encode_body([events.WritePart(["k" * size_bytes], [])])
        message = events.encode(EPOCH, seq, 0, body)
        found.append((shard, batch_of(0, message, key=envelope.around(shard, message)[0])))
    return found


@pytest.mark.parametrize("partitions", [1, 32])
async def test_a_backlog_that_does_not_fit_the_time_is_heard_in_parts(
    redis_url: str, kafka: KafkaServer, link: SlowLink, portions: list[Portion], partitions: int
) -> None:
    setup, counters, heard = setup_of(redis_url, kafka, partitions), Counters(), set[int]()
    assert BATCHES_BYTES > 2 * RATE * PATIENCE_S
    bus = kafka_bus(setup, monotonic, lambda _, message: heard.add(events.position_of(message)[1]), counters)
    await bus.connect()
    try:
        (portion,) = portions
        sent = batches(setup, 9_000)
        await keep(setup, setup.kafka_topic, *sent)
        await until(lambda: portion.most_bytes < RATE * PATIENCE_S)
        await until(lambda: len(heard) == len(sent), within_s=60.0)
        await until(lambda: portion.most_bytes == FETCH_BYTES)
        assert bus.connected
        assert counters.bus_positions_lost == 0
    finally:
        await bus.close()


async def test_a_batch_that_never_comes_in_time_is_passed_over(
    redis_url: str, kafka: KafkaServer, link: SlowLink, portions: list[Portion]
) -> None:
    setup, counters, heard = setup_of(redis_url, kafka, 1), Counters(), set[int]()
    bus = kafka_bus(setup, monotonic, lambda _, message: heard.add(events.position_of(message)[1]), counters)
    await bus.connect()
    try:
        ((_, large),) = batches(setup, BATCHES_BYTES)
        await keep(setup, setup.kafka_topic, large)
        await until(lambda: counters.bus_positions_lost == 1, within_s=60.0)
        _, small = batches(setup, 9_000)[5]

        async def heard_again() -> bool:
            await keep(setup, setup.kafka_topic, small)  # what came before it was at the end again is passed over, too
            return heard == {5}

        await until(heard_again)
    finally:
        await bus.close()


@pytest.mark.parametrize("partitions", [1, 8])
async def test_events_that_do_not_fit_the_uplink_are_given_up_in_time_and_the_last_ones_come(
    redis_url: str, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch, partitions: int
) -> None:
    """Not even the least request that there once was comes in time. Of a flood some come nevertheless, and what does
    not is neither kept nor sent."""
    setup, counters, heard = setup_of(redis_url, kafka, partitions), Counters(), set[int]()
    hearing = kafka_bus(setup, monotonic, lambda _, message: heard.add(events.position_of(message)[1]), Counters())
    async with SlowLink(kafka.port, up=UPLINK) as slow:
        through = f"127.0.0.1:{slow.port}"

        class Through(KafkaConnection):
            @classmethod
            async def open(cls, access: KafkaAccess, address: BrokerAddress) -> Self:
                if access.servers != through:
                    return await super().open(access, address)
                connection = await super().open(access, BrokerAddress(address.host, slow.port))
                connection.address = address
                return connection

        monkeypatch.setattr(brokers, "KafkaConnection", Through)
        publishing = kafka_bus(setup.model_copy(update={"kafka_bootstrap_servers": through}), monotonic, None, counters)
        seqs = count(1)
        body = events.encode_body([events.WritePart(["k" * 200], [])])

        async def flooded() -> bool:
            for _ in range(20):
                seq = next(seqs)
                await publishing.publish(seq % partitions, events.encode(EPOCH, seq, 0, body))
            answered = seq - counters.bus_publish_failures - publishing._sender._unresolved
            return answered >= 50 and len(heard) >= 50

        async def all_come() -> bool:
            seq = next(seqs)
            await publishing.publish(seq % partitions, events.encode(EPOCH, seq, 0, body))
            await publishing._sender.flush()
            return seq in heard

        try:
            await hearing.connect()
            await publishing.connect()
            await until(flooded, within_s=30.0)
            await until(lambda: not publishing._sender._unresolved, within_s=2 * setup.l2_timeout_s + 1.0)
            assert counters.bus_publish_failures > 50
            await until(all_come, within_s=30.0)
        finally:
            await publishing.close()
            await hearing.close()
