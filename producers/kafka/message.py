"""How a command travels on Kafka: its JSON as the value, its tenant as the key, and what it is worth in headers."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from cachebus.bus.kafka_client import KafkaAccess, kafka_access
from cachebus.errors import ConfigError
from cachebus.ids import text_of
from cachebus.settings import PREFIX, Settings
from producers.command import InvalidCommand

NAMESPACE: Final = "namespace"
"""The header that says for which caches a command is; without it, for those of whoever reads it."""
SIGNATURE: Final = "signature"
"""The header with the HMAC-SHA256, in hex, of the namespace's header, a zero byte, and the value."""
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
        kafka_access(settings), topic=settings.kafka_commands_topic, timeout_s=timeout_s, retention_ms=RETENTION_MS,
        in_sync=IN_SYNC,
    )  # fmt: skip


class Seal:
    """Writes and checks what goes with a command of these settings."""

    def __init__(self, settings: Settings) -> None:
        self.namespace = settings.namespace.encode()
        secret = settings.kafka_commands_key
        self._keys = [key.encode() for key in (secret.get_secret_value().split(",") if secret else ()) if key]
        if secret is not None and not self._keys:
            raise ConfigError(f"kafka_commands_key ({PREFIX}KAFKA_COMMANDS_KEY) is empty: leave it out, or give a key")

    def headers(self, value: bytes) -> list[tuple[str, bytes]]:
        """Of a command's message."""
        found = [(NAMESPACE, self.namespace)]
        if self._keys:
            found.append((SIGNATURE, _signature(self._keys[0], self.namespace, value)))
        return found

    def is_for_others(self, headers: Mapping[str, bytes]) -> bool:
        """Whether the message is for the caches of another namespace."""
        return (headers.get(NAMESPACE) or self.namespace) != self.namespace

    def check(self, value: bytes, headers: Mapping[str, bytes]) -> None:
        """`InvalidCommand` for a message that does not come from where the key is known; without a key all do."""
        if not self._keys:
            return
        signature = headers.get(SIGNATURE)
        if not signature:
            raise InvalidCommand("it is not signed")
        namespace = headers.get(NAMESPACE) or b""
        right = [hmac.compare_digest(_signature(key, namespace, value), signature) for key in self._keys]
        if not any(right):
            raise InvalidCommand("its signature is wrong")


def _signature(key: bytes, namespace: bytes, value: bytes) -> bytes:
    return hmac.new(key, namespace + b"\0" + value, "sha256").hexdigest().encode()


def key_of(tenant_id: Any) -> bytes:
    """The message's key: commands of one tenant stay in one partition, in order."""
    return b"" if tenant_id is None else text_of("tenant_id", tenant_id).encode()
