"""What this user may do with the topic, as a broker tells it: by version 8 of its metadata, which the driver lacks."""

from __future__ import annotations

from typing import Final

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from cachebus.bus.kafka.brokers import Brokers
from cachebus.errors import BusUnavailable

METADATA: Final = 3
NEEDED: Final = {"Read": 3, "Write": 4, "Describe": 8, "DescribeConfigs": 10}
"""What a node needs, by Kafka's numbers."""
NOT_TOLD: Final = -(2**31)


class _Answer(Response):  # type: ignore[misc]  # the driver has no types
    API_KEY = METADATA
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8")))),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
        ("cluster_operations", Int32),
    )


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY = METADATA
    API_VERSION = 8
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("makes_topics", Boolean),
        ("with_cluster_operations", Boolean),
        ("with_operations", Boolean),
    )


class _Rights(Request[_Question]):  # type: ignore[misc]
    API_KEY = METADATA

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_Question]) -> _Question:
        return request_struct_class([self._topic], False, False, True)


async def lacking(topic: str, brokers: Brokers) -> list[str] | None:
    """Which of the operations that a node needs this user may not do; None where no broker tells, as before Kafka
    2.3."""
    try:
        ((code, _, _, _, operations),) = (await brokers.ask(_Rights(topic))).topics
    except BusUnavailable:
        return None
    if code or operations == NOT_TOLD:
        return None
    return [name for name, number in NEEDED.items() if not operations & 1 << number]
