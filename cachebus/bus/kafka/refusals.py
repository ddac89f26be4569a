"""What a broker refuses, in words, with what mends it."""

from __future__ import annotations

from typing import Final

from cachebus.bus.kafka.client import KafkaAccess

NOT_ALLOWED: Final = 29
TOO_LARGE: Final = 10
BATCH_BYTES: Final = 1_048_588
"""The largest batch that a topic takes where nothing else is set, as Kafka has it."""


def allowing(access: KafkaAccess, *operations: str) -> str:
    """The command that lets this user do that with the topic."""
    each = " ".join(f"--operation {operation}" for operation in operations)
    return (
        f"kafka-acls.sh --bootstrap-server {access.servers} --add --allow-principal User:NAME {each} "
        f"--topic {access.topic}"
    )


def setting_up(servers: str, topic: str, configs: str) -> str:
    """The command that sets the topic up so."""
    return (
        f"kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {topic} "
        f"--add-config {configs}"
    )


def refusal(access: KafkaAccess, code: int, operation: str, size_bytes: int = 0) -> str:
    """Why an operation on the topic, with a message of that size, was refused."""
    from aiokafka.errors import for_code

    why: str = for_code(code).__name__
    if code == NOT_ALLOWED:
        return f"{why}: allow it by {allowing(access, operation)}"
    if code == TOO_LARGE:
        wanted = f"max.message.bytes={max(BATCH_BYTES, 2 * size_bytes)}"
        return f"{why}: let it be as large by {setting_up(access.servers, access.topic, wanted)}"
    return why
