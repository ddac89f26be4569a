"""What waits for a primary that is away, while all else in its partitions goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from aiokafka import TopicPartition

from cachebus.clock import monotonic
from cachebus.plan import Plan

TRY_EVERY_S: Final = 1.0
MOST: Final = 50_000
"""Of what one message asks for: beyond that nothing more is taken before some of it could be applied."""


class Asked(NamedTuple):
    """What a message asks for, or a part of it."""

    plan: Plan
    partition: TopicPartition
    offset: int
    sent_s: float | None
    """When it was sent, by the wall clock; None: of a part that is not to be counted."""


class Held:
    """In memory, and not committed: whoever comes after who was killed is given it again, with all behind it."""

    def __init__(self) -> None:
        self._asked: list[Asked] = []
        self._next_s = 0.0

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def plans(self) -> list[Plan]:
        """All of it."""
        return [asked.plan for asked in self._asked]

    @property
    def shards(self) -> set[int]:
        """Whose primaries it waits for."""
        return {asked.plan.shard for asked in self._asked}

    @property
    def full(self) -> bool:
        """Whether no more is to be taken."""
        return len(self._asked) >= MOST

    @property
    def due(self) -> bool:
        """Whether it is time to try it again."""
        return bool(self._asked) and monotonic() >= self._next_s

    @property
    def wait_s(self) -> float:
        """For how long it is not."""
        return max(0.0, self._next_s - monotonic())

    def add(self, asked: Sequence[Asked]) -> None:
        """Hold these."""
        if not self._asked:
            self._next_s = monotonic() + TRY_EVERY_S
        self._asked += asked

    def released(self, away: Collection[int]) -> list[Asked]:
        """It was tried, and these shards are away: gives what is done, and is held no more."""
        self._next_s = monotonic() + TRY_EVERY_S
        done = [asked for asked in self._asked if asked.plan.shard not in away]
        self._asked = [asked for asked in self._asked if asked.plan.shard in away]
        return done

    def forget(self, mine: Callable[[TopicPartition], bool]) -> None:
        """Others have the partitions that are not mine any more, and will be given it."""
        self._asked = [asked for asked in self._asked if mine(asked.partition)]

    def first(self, partition: TopicPartition) -> int | None:
        """The offset of the first message of which something is held."""
        return min((asked.offset for asked in self._asked if asked.partition == partition), default=None)
