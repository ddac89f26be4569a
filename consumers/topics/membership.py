"""A place in a group that reads topics, and what goes wrong there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.errors import KafkaError

from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.clean import describe as told_of
from cachebus.errors import BusUnavailable, ConfigError

TROUBLE: Final = (KafkaError, OSError, TimeoutError, BusUnavailable)
"""What is raised when Kafka is out of reach, or does not let one do what is asked."""
NAME: Final = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9._-]{1,249}")
CLIENT: Final = "cachebus-"
"""What the brokers call a client of ours, with its namespace behind it."""


@dataclass(frozen=True)
class Membership:
    """Which group, at which brokers, and how it is read."""

    clients: Mapping[str, Any] = field(repr=False)
    """aiokafka's client settings: the brokers, TLS, SASL."""
    group: str
    dead_topic: str
    batch: int = 5000
    """Messages that are in hand together, at most."""
    session_timeout_s: float = 10.0
    """So long after a worker vanished without a word others take its partitions over."""
    namespace: str = "cachebus"
    """Whose caches it serves: a group serves one."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.dead_topic):
            raise ConfigError(f"dead_topic: {clean(self.dead_topic)} can't be a topic's name: give another one")


def describe(error: BaseException) -> str:
    """An error of Kafka's in a line."""
    if isinstance(error, TimeoutError):
        return "the brokers do not answer"
    return clean(str(error)) if isinstance(error, BusUnavailable) else told_of(error)
