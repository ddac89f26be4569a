"""How a command travels on Kafka: its JSON as the value, its tenant as the key, and what it is worth in headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from cachebus.base.ids import text_of
from cachebus.bus.kafka_client import KafkaAccess, kafka_access
from cachebus.bus.kafka_signature import SIGNATURE, Keyring
from cachebus.errors import ConfigError
from cachebus.producers.command import InvalidCommand
from cachebus.settings import PREFIX, Settings

NAMESPACE: Final = "namespace"
"""The header that says for which caches a command is; without it, for those of whoever reads it."""
ATTEMPTS: Final = "attempts"
"""The header that says how often it was set aside before."""
LARGEST_BYTES: Final = 256 * 1024
"""Of a command: what more things are related, a scope or a tag is for."""
RETENTION_MS: Final = 7 * 24 * 3_600_000
"""Of a topic that is made here: how long workers may be away without losing anything."""
IN_SYNC: Final = 2

Headers = Iterable[tuple[str, bytes]]


def commands_access(settings: Settings, timeout_s: float) -> KafkaAccess:
    """The way to the commands' topic; `ConfigError` where the settings have none."""
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
    """Writes and checks what goes with a command of these settings: for which caches it is, and who says so."""

    def __init__(self, settings: Settings) -> None:
        self.namespace = settings.namespace.encode()
        self._keyring = Keyring.of(settings.kafka_commands_key)

    def headers(self, value: bytes) -> list[tuple[str, bytes]]:
        """Of a command's message."""
        found = [(NAMESPACE, self.namespace)]
        if self._keyring is not None:
            found.append((SIGNATURE, self._keyring.sign(self.namespace, value)))
        return found

    def is_for_others(self, headers: Mapping[str, bytes]) -> bool:
        """Whether the message is for the caches of another namespace."""
        return (headers.get(NAMESPACE) or self.namespace) != self.namespace

    def check(self, value: bytes, headers: Mapping[str, bytes]) -> None:
        """`InvalidCommand` for a message that does not come from where the key is known; without a key all do."""
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
