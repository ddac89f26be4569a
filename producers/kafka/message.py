"""The message of a command on Kafka: JSON as the value, the tenant as the key, namespace and signature as headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from cachebus.base.agreement import PREFIX
from cachebus.base.ids import text_of
from cachebus.bus.kafka.client import KafkaAccess, kafka_access
from cachebus.bus.kafka.signature import SIGNATURE, Keyring
from cachebus.errors import ConfigError
from cachebus.producers.command import InvalidCommand
from cachebus.settings import Settings

NAMESPACE: Final = "namespace"
"""The header with the namespace of the caches. A command without it is for the caches of any worker that reads it."""
ATTEMPTS: Final = "attempts"
"""The header that says how often the command was set aside before."""
LARGEST_BYTES: Final = 256 * 1024
"""The largest command. For more related resources there are scopes and tags."""
RETENTION_MS: Final = 7 * 24 * 3_600_000
"""The retention of a topic that we create: workers may be away so long without losing anything."""
IN_SYNC: Final = 2

Headers = Iterable[tuple[str, bytes]]


def commands_access(settings: Settings, timeout_s: float) -> KafkaAccess:
    """The access to the commands' topic; `ConfigError` if the settings name no Kafka."""
    if settings.kafka_bootstrap_servers is None:
        raise ConfigError(
            f"commands on Kafka need kafka_bootstrap_servers ({PREFIX}KAFKA_BOOTSTRAP_SERVERS): host:port,host:port"
        )
    return replace(
        kafka_access(settings),
        topic=settings.kafka_commands_topic,
        timeout_s=timeout_s,
        retention_ms=RETENTION_MS,
        in_sync=IN_SYNC,
    )


class Seal:
    """Writes and checks the headers of a command: its namespace, and its signature."""

    def __init__(self, settings: Settings) -> None:
        self.namespace = settings.namespace.encode()
        self._keyring = Keyring.of(settings.kafka_commands_key)

    def headers(self, value: bytes) -> list[tuple[str, bytes]]:
        """The headers of a command's message."""
        found = [(NAMESPACE, self.namespace)]
        if self._keyring is not None:
            found.append((SIGNATURE, self._keyring.sign(self.namespace, value)))
        return found

    def is_for_others(self, headers: Mapping[str, bytes]) -> bool:
        """Whether the message is for the caches of another namespace."""
        return (headers.get(NAMESPACE) or self.namespace) != self.namespace

    def check(self, value: bytes, headers: Mapping[str, bytes]) -> None:
        """Raises `InvalidCommand` for a message without a right signature. Without a key, no signature is asked for."""
        if self._keyring is None:
            return
        signature = headers.get(SIGNATURE)
        if not signature:
            raise InvalidCommand("it is not signed")
        if not self._keyring.accepts(headers.get(NAMESPACE) or b"", value, signature):
            raise InvalidCommand("its signature is wrong")


def key_of(tenant_id: Any) -> bytes:
    """The message's key: commands of one tenant stay in one partition, in order."""
    return b"" if tenant_id is None else text_of("tenant_id", tenant_id).encode()
