"""The commands of Kafka's own tools, as remedies."""

from __future__ import annotations

from cachebus.bus.kafka.client import KafkaAccess
from cachebus.consumers.worker.clean import clean


def tool(access: KafkaAccess, program: str, rest: str) -> str:
    """Such a command: "kafka-topics.sh --bootstrap-server localhost:9092 --describe". What logs in is to be added to it
    (`--command-config FILE`)."""
    return f"kafka-{program}.sh --bootstrap-server {clean(access.servers)} {rest}"


def altered(access: KafkaAccess, topic: str, config: str) -> str:
    """The command that changes a topic's configuration."""
    return tool(access, "configs", f"--alter --entity-type topics --entity-name {clean(topic)} --add-config {config}")


def created(access: KafkaAccess, topic: str, partitions: int, config: str = "") -> str:
    """The command that makes a topic."""
    return tool(access, "topics", f"--create --topic {clean(topic)} --partitions {partitions}{config}")


def created_dead(access: KafkaAccess, topic: str) -> str:
    """The command that makes a topic of the dead, of which nothing is ever removed."""
    return created(access, topic, 1, " --config retention.ms=-1 --config cleanup.policy=delete")
