"""Where a message came from, and whether that is this worker's to read."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition

from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.topics.kafka import DebeziumSource, KafkaSource
from cachebus.consumers.kafka.worker import CommandsSource, WorkerOptions
from cachebus.consumers.topics.session import TopicSession
from cachebus.consumers.topics.source import TopicSource
from cachebus.consumers.worker.source import Item
from cachebus.settings import Settings


class Assigned:
    """The progress in an assignment that has the first partition of a topic."""

    def __init__(self, *parts: int) -> None:
        self.assignment: Any = self
        self.tps = {TopicPartition("a.b", part) for part in parts}


def session_of(source: TopicSource) -> TopicSession:
    """A session that is in no group yet."""
    session = TopicSession.__new__(TopicSession)
    session.source, session.progress = source, None
    return session


@pytest.mark.parametrize("is_debezium", [False, True])
def test_only_what_others_have_is_not_read(*, is_debezium: bool) -> None:
    """1. Before an assignment nobody knows. 2. Others may have some partitions, and a table's topic is of all. 3. Or
    they have all."""
    source: TopicSource
    if is_debezium:
        rules = parse_rules('tenants = ["acme"]\n[[rule]]\ntable = "a.b"\ndata_type = "system"\nresource_id = "{id}"')
        source = DebeziumSource(rules, KafkaSource("localhost:1", "a.b"))
    else:
        source = CommandsSource(Settings(kafka_bootstrap_servers="localhost:1"), WorkerOptions())
    session = session_of(source)
    first, second = (session.origin(Item(f"a.b/{part}@7", None)) for part in (0, 1))
    assert (first, second) == (("a.b", "a.b") if is_debezium else ("a.b/0", "a.b/1"))
    assert session.reads(first) and session.reads(second)
    session.progress = Assigned(0)  # type: ignore[assignment]
    assert session.reads(first) and session.reads(second) is is_debezium
    session.progress = Assigned()  # type: ignore[assignment]
    assert not session.reads(first) and not session.reads(second)
