"""One partition of the topic, as it is heard."""

from __future__ import annotations

from typing import Final

from cachebus.base.backoff import Attempts
from cachebus.bus.kafka.connection import Address
from cachebus.bus.kafka.reach import Reach

PARTITION_BYTES: Final = 1024 * 1024
"""The most that comes of a partition at once, but for a message that is larger."""


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
        self.leader: Address | None = None
        self.most_bytes = PARTITION_BYTES
        """The most that is asked for at once: as much as comes in time."""
