"""A broker's quotas: it answers at once, and then reads nothing for a while. That is not taken for hanging."""

from __future__ import annotations

from secrets import token_hex
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Float64, Int16, Int32, Schema, String

from cachebus import Settings
from cachebus.assembly.backends import kafka_bus
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.client import kafka_access
from cachebus.bus.kafka.connection import LONGEST_PAUSE_S, KafkaConnection, addresses_of
from cachebus.observe import Counters
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.wire import event as events
from tests.support.caches import quick, until

EPOCH = b"e" * 16
TEXT = String("utf-8")
ENTITY = ("entity", Array(("type", TEXT), ("name", TEXT)))


class _Answer(Response):
    API_KEY = 49
    API_VERSION = 0
    SCHEMA = Schema(("throttle_time_ms", Int32), ("entries", Array(("code", Int16), ("why", TEXT), ENTITY)))


class _Alter(RequestStruct):
    API_KEY = 49
    API_VERSION = 0
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        ("entries", Array(ENTITY, ("ops", Array(("key", TEXT), ("value", Float64), ("remove", Boolean))))),
        ("validate_only", Boolean),
    )


class Alter(Request[_Alter]):
    """Set a client's quota, in bytes a second."""

    API_KEY = 49

    def __init__(self, client: str, **quotas: float) -> None:
        self._entries = [([("client-id", client)], [(key, value, False) for key, value in quotas.items()])]

    def build(self, request_struct_class: type[_Alter]) -> _Alter:
        """As the driver sends it."""
        return request_struct_class(self._entries, False)


@pytest.fixture
def setup(redis_url: str, kafka: KafkaServer) -> Settings:
    """Settings of a topic with one partition, and a client id, of the test's own."""
    name = f"quota-{token_hex(4)}"
    return quick(
        redis_url,
        bus="kafka",
        kafka_bootstrap_servers=kafka.address,
        kafka_topic=name,
        namespace=name,
        kafka_partitions=1,
    )


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those that brokers have asked for, in seconds, but for the shortest."""
    noted: list[float] = []
    heed = KafkaConnection._heed

    def heeded(self: KafkaConnection, answer: Any) -> None:
        heed(self, answer)
        if self.pause_s > 0.1:
            noted.append(self.pause_s)

    monkeypatch.setattr(KafkaConnection, "_heed", heeded)
    return noted


async def limited(setup: Settings, **quotas: float) -> None:
    """The nodes' client has these quotas."""
    admin = AIOKafkaAdminClient(bootstrap_servers=setup.kafka_bootstrap_servers)
    await admin.start()
    try:
        answer = await admin._send_request(Alter(kafka_access(setup).name, **quotas))
        assert [code for code, *_ in answer.entries] == [0], answer
    finally:
        await admin.close()


def event(seq: int, size: int) -> bytes:
    """One that a node may have published."""
    return events.encode(EPOCH, seq, 0, events.encode_body([events.WritePart(["k" * size], [])]))


@pytest.mark.parametrize("quota", ["producer_byte_rate", "consumer_byte_rate"])
async def test_a_broker_whose_quota_is_used_up_is_waited_for_and_no_connection_is_lost(
    setup: Settings, pauses: list[float], quota: str
) -> None:
    heard = list[int]()
    bus = kafka_bus(setup, monotonic, lambda _, message: heard.append(events.position_of(message)[1]), Counters())
    await limited(setup, **{quota: 8_000})
    await bus.connect()
    try:
        (lane,) = bus._sender._lanes.values()
        sending = lane.connection
        for seq in range(5):
            await bus.publish(0, event(seq, 20_000))
            await until(lambda seq=seq: heard[-1:] == [seq] or max(pauses, default=0.0) > 2 * setup.l2_timeout_s)
        assert max(pauses) > 2 * setup.l2_timeout_s
        await bus.publish(0, event(8, 10))  # which may be lost, as it can't be sent in time
        await until(lambda: not sending.pause_s)
        await bus.publish(0, event(9, 10))
        await until(lambda: heard[-1:] == [9], within_s=30.0)
        assert bus.opened == 1
        assert lane.connection is sending
    finally:
        await bus.close()


async def test_a_pause_that_is_asked_for_is_bounded(setup: Settings) -> None:
    access = kafka_access(setup)
    connection = await KafkaConnection.open(access, addresses_of(access.servers)[0])
    try:
        connection._heed(_Answer(86_400_000, []))
        assert LONGEST_PAUSE_S - 5 < connection.pause_s <= LONGEST_PAUSE_S
    finally:
        await connection.close()
