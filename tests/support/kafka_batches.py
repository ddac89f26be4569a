"""Batches of Kafka as anybody may write them, and what the driver reads in them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from cachebus import Settings
from cachebus.base.clock import wall_s
from cachebus.bus.kafka.client import kafka_access, quietly
from cachebus.bus.kafka.connection import KafkaConnection, addresses_of
from cachebus.bus.kafka.inflating import GZIP, LZ4, SNAPPY, ZSTD

CODECS = pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD], ids=["gzip", "snappy", "lz4", "zstd"])
HEAD_BYTES = 61


def batch_of(codec: int, *values: bytes, key: bytes = b"k") -> bytes:
    """A batch of messages with these values and this key; `codec`: 0 for none."""
    builder: Any = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 10**9)
    now_ms = int(wall_s() * 1000)  # what is old the broker removes
    for offset, value in enumerate(values):
        builder.append(offset, timestamp=now_ms, key=key, value=value, headers=[])
    return bytes(builder.build())


def with_body(codec: int, body: bytes) -> memoryview:
    """A batch that says that these bytes are its messages, compressed; its check is wrong."""
    head = bytearray(batch_of(0, b"v")[:HEAD_BYTES])
    struct.pack_into(">i", head, 8, HEAD_BYTES - 12 + len(body))
    head[22] |= codec
    return memoryview(bytes(head) + body)


def values_in(batch: bytes) -> list[bytes | None]:
    """The values of a batch's messages, as the driver reads them."""
    return [record.value for record in DefaultRecordBatch(batch)]


async def keep(settings: Settings, topic: str, *batches: bytes | tuple[int, bytes]) -> None:
    """Have the broker keep these batches, each in the partition of that number, or in the first."""
    access = kafka_access(settings)
    with quietly():
        connection = await KafkaConnection.open(access, addresses_of(access.servers)[0])
        try:
            for one in batches:
                part = (0, one) if isinstance(one, bytes) else one
                answer = await connection.ask(ProduceRequest(None, -1, 20_000, [(topic, [part])]), 30.0)
                assert answer.topics[0][1][0][1] == 0, answer
        finally:
            await connection.close()
