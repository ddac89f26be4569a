"""One partition of the topic, as it is heard."""

from __future__ import annotations

import asyncio

from cachebus.base.backoff import Attempts
from cachebus.bus.kafka.connection import BrokerAddress
from cachebus.bus.kafka.reach import Reach


class Ear:
    """A partition, as it is heard."""

    def __init__(self, number: int, reach: Reach, attempts: Attempts, position: int | None) -> None:
        self.number = number
        self.reach = reach
        self.attempts = attempts
        self.position = position
        """The offset that comes next. None: the end, wherever it is then."""
        self.placed = False
        """Whether its leader has that offset."""
        self.leader: BrokerAddress | None = None
        self.reading: asyncio.Task[None] | None = None
        """Reads what came of it; it is not fetched before that has ended."""
