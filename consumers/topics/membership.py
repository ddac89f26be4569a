"""Which consumer group a worker is in, at which brokers, and the errors of Kafka."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.errors import KafkaError

from cachebus.base.urls import brokers
from cachebus.bus.kafka.client import KafkaAccess
from cachebus.bus.kafka.driver import SECURITY
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.clean import describe as told_of
from cachebus.errors import BusUnavailable, ConfigError

TROUBLE: Final = (KafkaError, OSError, TimeoutError, BusUnavailable)
"""The errors that mean that Kafka is out of reach, or refuses a request."""
NAME: Final = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9._-]{1,249}")
CLIENT: Final = "cachebus-"
"""The beginning of our clients' ids; their namespace follows."""
DRIVERS_TIMEOUT_MS: Final = 40_000
"""How long a request of the driver's takes at most, unless it is told otherwise."""


@dataclass(frozen=True)
class Membership:
    """The consumer group of a worker."""

    clients: Mapping[str, Any] = field(repr=False)
    """aiokafka's client settings: the brokers, TLS, SASL."""
    group: str
    dead_topic: str
    batch: int = 5000
    """The most messages of a batch."""
    session_timeout_s: float = 10.0
    """How long after a worker has died others take over its partitions, in seconds."""
    namespace: str = "cachebus"
    """Whose caches it serves: a group serves one."""

    @property
    def access(self) -> KafkaAccess:
        """The same for questions that whichever broker answers."""
        servers = self.clients["bootstrap_servers"]
        timeout_s = self.clients.get("request_timeout_ms", DRIVERS_TIMEOUT_MS) / 1000
        return KafkaAccess(
            servers=servers if isinstance(servers, str) else ",".join(servers),
            topic=self.dead_topic,
            partitions=1,
            timeout_s=timeout_s,
            connect_timeout_s=timeout_s,
            name=self.clients.get("client_id", f"{CLIENT}{self.namespace}"),
            security={name: self.clients[name] for name in SECURITY if name in self.clients},
        )

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.dead_topic):
            raise ConfigError(f"dead_topic: {clean(self.dead_topic)} can't be a topic's name: give another one")
        try:
            brokers(self.access.servers)
        except ValueError as error:
            raise ConfigError(f"bootstrap_servers: {error}") from None


def describe(error: BaseException) -> str:
    """An error of Kafka in one line."""
    if isinstance(error, TimeoutError):
        return "the brokers do not answer"
    return clean(str(error)) if isinstance(error, BusUnavailable) else told_of(error)
