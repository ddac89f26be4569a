"""What all loads of one cache share."""

from __future__ import annotations

from dataclasses import dataclass

from cachebus.reading.cooldown import Cooldowns
from cachebus.reading.fetch import Fetcher
from cachebus.reading.flight import Flights
from cachebus.reading.read import Reader
from cachebus.reading.waiting import Waiters


@dataclass(frozen=True, slots=True)
class LoadParts:
    """Made once, and handed to each load."""

    fetch: Fetcher
    reader: Reader
    waiters: Waiters
    flights: Flights
    cooldowns: Cooldowns
    """Keys whose source has failed on this node, and is left alone."""
    lease_ms: int
    """How long L2 lets a fill lease live that is not extended."""
    enabled: bool = True
    """Whether anything is cached."""
    hints: bool = True
    """Whether the end of a fill lease is told on the store's own channel: where it is not, those who wait must poll."""
