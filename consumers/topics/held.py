"""Messages that wait for a primary that is away, or that could not be set aside, while the rest of their partitions
goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

from aiokafka import TopicPartition

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.worker.dead import DeadLetter

MOST: Final = 50_000
MOST_BYTES: Final = 64 << 20
"""The most messages and bytes in memory. What is more is read again from its topic, once what is held was applied."""
FIRST_S: Final = 1.0
LONGEST_S: Final = 5.0
"""How long a primary that is still away is not tried again: at first, and at most."""

Shards = frozenset[int]
NO_SHARDS: Final = Shards()
"""Stands for what waits to be set aside, and not for a primary."""


@dataclass(slots=True, eq=False)
class HeldMessage:
    """A message, or a part of it, that waits."""

    record: Any
    partition: TopicPartition
    commands: tuple[bytes, ...]
    sent_s: float | None
    again: bool
    letter: DeadLetter | None = None
    """The dead letter of what can't be applied of it, and could not be set aside."""
    size_bytes: int = field(init=False)
    """About how much memory it takes, as it was at first."""

    def __post_init__(self) -> None:
        value, key = (getattr(self.record, name, None) or b"" for name in ("value", "key"))
        held = sum(map(len, self.commands)) + len(key) + 500
        self.size_bytes = held + (len(value) if value not in self.commands else 0)


class Offsets:
    """A set of offsets of a partition, which knows its lowest at once."""

    def __init__(self) -> None:
        self._there: set[int] = set()
        self._heap: list[int] = []

    def __contains__(self, offset: int) -> bool:
        return offset in self._there

    def add(self, offset: int) -> None:
        """Add an offset."""
        self._there.add(offset)
        heappush(self._heap, offset)

    def discard(self, offset: int) -> None:
        """Remove an offset."""
        self._there.discard(offset)
        while self._heap and self._heap[0] not in self._there:
            heappop(self._heap)

    @property
    def lowest(self) -> int | None:
        """The lowest offset; None if there is none."""
        return self._heap[0] if self._heap else None


class Held:
    """What waits, in memory, and is not committed: if the worker is killed, the next one reads it again.

    1. Messages that need the same shards form a queue. One of a queue is tried; once it is applied, all others are.
    2. What is too much to hold is not kept. Its partition is read again from there, once the queue is applied.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES, clock: Clock = monotonic) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._clock = clock
        self._queues: dict[Shards, deque[HeldMessage]] = {}
        self._given: dict[HeldMessage, Shards] = {}
        self._offsets: dict[TopicPartition, Offsets] = {}
        self._too_much: dict[Shards, dict[TopicPartition, int]] = {}
        """Where partitions are to be read again from, by the shards that are waited for."""
        self._count = self._bytes = 0
        self._back = set[Shards]()
        """Queues of which a message was applied: their primaries are back."""
        self._pause_s = 0.0
        self._ask_s = 0.0
        """When the next try is due."""

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """About how much memory all of it takes."""
        return self._bytes

    @property
    def sent_s(self) -> float | None:
        """When the oldest message was sent, in Unix seconds, where that is known."""
        heads = [queue[0].sent_s for queue in self._queues.values() if queue]
        return min((at_s for at_s in heads if at_s is not None), default=None)

    def keep(self, kept: HeldMessage, shards: Shards) -> None:
        """Hold a message, or, if there is no room, note where to read it again from."""
        offsets = self._offsets.setdefault(kept.partition, Offsets())
        offset = kept.record.offset
        if offset in offsets:
            return
        queue, size_bytes = self._queues.setdefault(shards, deque()), kept.size_bytes
        if queue and (self._count >= self._most or self._bytes + size_bytes > self._most_bytes):
            again = self._too_much.setdefault(shards, {})
            again[kept.partition] = min(offset, again.get(kept.partition, offset))
            return
        self._back.discard(shards)
        if not self._count:
            self._paused()
        queue.append(kept)
        offsets.add(offset)
        self._count += 1
        self._bytes += size_bytes

    def give(self, limit: int, away: Collection[int]) -> list[HeldMessage]:
        """At most `limit` messages that may be tried now. `away`: shards whose primaries are away."""
        given: list[HeldMessage] = []
        may_ask = self._clock() >= self._ask_s
        for shards, queue in list(self._queues.items()):
            if not shards.isdisjoint(away):
                self._back.discard(shards)
            elif shards in self._back or may_ask:
                most = limit - len(given) if shards in self._back else min(1, limit - len(given))
                may_ask = may_ask and shards in self._back
                given += self._taken(shards, queue, most)
        return given

    def _taken(self, shards: Shards, queue: deque[HeldMessage], most: int) -> list[HeldMessage]:
        taken = [queue.popleft() for _ in range(min(most, len(queue)))]
        self._given.update(dict.fromkeys(taken, shards))
        if shards not in self._back:
            self._queues[shards] = self._queues.pop(shards)  # behind the others, so that each gets its turn
        return taken

    def tried(self, waiting: Mapping[HeldMessage, Shards], undone: Collection[HeldMessage]) -> None:
        """The given messages were tried. `waiting`: those that still wait, with the shards. `undone`: those for which
        there was no time. All others are done."""
        for kept, shards in reversed(self._given.items()):
            if kept in waiting:
                self._back.discard(shards)
                queue = self._queues.setdefault(waiting[kept], deque())
                if waiting[kept] == NO_SHARDS:
                    queue.append(kept)  # last, since another letter may be kept
                else:
                    queue.appendleft(kept)
            elif kept in undone:
                self._queues[shards].appendleft(kept)
            else:
                self._done(kept, shards)
        if waiting:
            self._paused()
        elif self._given:
            self._pause_s = 0.0
        self._given.clear()
        for shards in [shards for shards, queue in self._queues.items() if not queue and shards not in self._too_much]:
            del self._queues[shards]

    def _done(self, kept: HeldMessage, shards: Shards) -> None:
        self._back.add(shards)
        self._offsets[kept.partition].discard(kept.record.offset)
        self._count -= 1
        self._bytes -= kept.size_bytes

    def _paused(self) -> None:
        self._pause_s = min(LONGEST_S, max(FIRST_S, 2 * self._pause_s))
        self._ask_s = self._clock() + self._pause_s

    def to_read_again(self) -> dict[TopicPartition, int]:
        """Where to read partitions again from now: for queues that are applied, and had more than could be held."""
        due = [shards for shards in self._too_much if not self._queues.get(shards)]
        found: dict[TopicPartition, int] = {}
        for shards in due:
            _lower(found, self._too_much.pop(shards).items())
        return found

    def first(self, partition: TopicPartition) -> int | None:
        """The lowest offset of the partition that waits, in memory or in the topic."""
        offsets = self._offsets.get(partition)
        found = [again[partition] for again in self._too_much.values() if partition in again]
        if offsets is not None and offsets.lowest is not None:
            found.append(offsets.lowest)
        return min(found, default=None)

    @property
    def left_there(self) -> dict[TopicPartition, int]:
        """The first offset of each partition that was too much to hold."""
        found: dict[TopicPartition, int] = {}
        for again in self._too_much.values():
            _lower(found, again.items())
        return found


def _lower(found: dict[TopicPartition, int], more: Iterable[tuple[TopicPartition, int]]) -> None:
    for partition, offset in more:
        found[partition] = min(offset, found.get(partition, offset))
