"""What a shard answers, and what others keep of its answers until they ask again."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

NEVER, INF = float("-inf"), float("inf")
"""Times on a monotonic clock: before all others, and after."""
NO_EPOCH = b""
BEYOND = 1 << 62
"""A seq above all others, for a drop that no event stands for: nothing under way survives it."""


class Heard(Enum):
    """What an event turned out to be."""

    NEXT = "next in order"
    AHEAD = "behind a gap"
    OLD = "known already"
    LEFT = "of an epoch that is not this shard's any more, or of another store"
    FOREIGN = "of an epoch that may have begun since"


class Probed(Enum):
    """What a probe's reply says of this node."""

    RENEWED = "up to date"
    BEHIND = "events are missing"
    FOREIGN = "another epoch"


class Reservation(NamedTuple):
    """Taken before a value is read, loaded or written; tells afterwards whether an event came in between.

    It is only a position among the shard's recent drops, so a reader that is cancelled leaves nothing behind.
    """

    epoch: bytes
    drops: int
    applied: int


class ScopeSnapshot(NamedTuple):
    """What was remembered of some scopes and tags when something began that others may join."""

    low: tuple[int, int]
    invalidated_at: dict[str, int]


class HeardSoFar(NamedTuple):
    """How far which epoch had been heard when a question was sent."""

    epoch: bytes
    highest_seq: int
