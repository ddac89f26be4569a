"""What goes around an event on Kafka: a key that says of which history it is, and a signature where there are keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from cachebus.bus.kafka.signature import SIGNATURE, Keyring
from cachebus.core.hearing import Hearing
from cachebus.settings import Settings
from cachebus.wire.event import position_of

Headers = list[tuple[str, bytes]]


def message_key(namespace: str, shard: int, epoch: bytes) -> bytes:
    """The key of the messages of one history: those of another store differ in the epoch."""
    return b"%b:%b" % (_prefix(namespace, shard), epoch)


def _prefix(namespace: str, shard: int) -> bytes:
    return f"{namespace}:{shard}".encode()


def hearing_of(settings: Settings) -> Hearing:
    """Where a node with these settings hears events over Kafka."""
    return Hearing(settings.kafka_topic, keys=Envelope.of(settings).fingerprints)


class Envelope:
    """Key and headers of a namespace's messages: written for who publishes, read for who listens."""

    def __init__(self, namespace: str, shards: int, keyring: Keyring | None = None) -> None:
        """Without a keyring nothing is signed, and everything is taken."""
        self._namespace = namespace
        self._shards = {_prefix(namespace, shard): shard for shard in range(shards)}
        self._keyring = keyring

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings say."""
        return cls(settings.namespace, settings.shards, Keyring.of(settings.kafka_events_key))

    @property
    def fingerprints(self) -> str:
        """As `Hearing.keys`."""
        return "" if self._keyring is None else ",".join(self._keyring.fingerprints(self._namespace.encode()))

    def around(self, shard: int, event: bytes) -> tuple[bytes, Headers]:
        """Key and headers of the message whose value is this event."""
        epoch, _ = position_of(event)
        key = message_key(self._namespace, shard, epoch)
        return key, [] if self._keyring is None else [(SIGNATURE, self._keyring.sign(key, event))]

    def shard_of(self, key: bytes | None) -> int | None:
        """The shard that a message is of; None: another namespace's, or nobody's."""
        return self._shards.get((key or b"").rpartition(b":")[0])

    def trusts(self, key: bytes, value: bytes, headers: Iterable[tuple[str, bytes]]) -> bool:
        """Whether a message comes from where a key is known. The signature covers the message's key, so that an event
        can't be sent again as one of another shard or namespace."""
        return self._keyring is None or self._keyring.accepts(key, value, dict(headers).get(SIGNATURE))
