"""The marks of one shard in memory: the twin of what the scripts keep in sorted sets, a bucket of tenants each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil

from cachebus.event import NO_BUCKET
from cachebus.keys import ALL_TENANTS, bucket_of_name
from cachebus.ports import Marks

BATCH_PART = 128
LONG_BYTES = 256


def _size(name: str) -> int:
    return 1 + len(name.encode()) // LONG_BYTES


class MemoryMarks:
    """For each bucket the seq of each name, the oldest first, and the bucket's low watermark."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.by_bucket: dict[str, dict[str, int]] = {}
        self.low: dict[str, int] = {}
        self.trimmed = 0
        self._size = 0
        self.counted: dict[str, int] = {}
        """How many there should be, by bucket: fewer, and some were lost."""

    @property
    def are_lost(self) -> bool:
        """Whether marks are missing, as after an eviction."""
        return any(len(self.by_bucket.get(bucket, ())) != count for bucket, count in self.counted.items())

    def lose(self) -> None:
        """Play an eviction of all marks."""
        self.by_bucket.clear()

    def hide(self, seq: int, bucket: str, names: Iterable[str]) -> bool:
        """Whether a record of this seq, in a key of this bucket with these scopes and tags, was replaced."""
        if seq < max(self.low.get(bucket, 0), self.low.get(ALL_TENANTS, 0)):
            return True
        own, wide = self.by_bucket.get(bucket, {}), self.by_bucket.get(ALL_TENANTS, {})
        return any(own.get(name, 0) > seq or wide.get(name, 0) > seq for name in names)

    def set(self, names: Sequence[str], seq: int) -> tuple[str, int]:
        """Move these to `seq`. Gives the bucket whose low watermark this has raised, and that."""
        added = False
        for name in names:
            marks = self.by_bucket.setdefault(bucket_of_name(name), {})
            if marks.pop(name, None) is None:  # re-inserted last: the oldest come first
                self._size += _size(name)
                added = True
            marks[name] = seq
        raised = NO_BUCKET, 0
        if added and self._size > self.most:
            raised = self._trim(self._size - self.most)
        self.counted = {bucket: len(marks) for bucket, marks in self.by_bucket.items()}
        return raised

    def _trim(self, excess: int) -> tuple[str, int]:
        bucket = max(self.by_bucket, key=lambda b: sum(map(_size, self.by_bucket[b])))
        marks = self.by_bucket[bucket]
        for name in list(marks)[: max(excess, ceil(self.most / BATCH_PART))]:
            self.low[bucket] = marks.pop(name)
            self._size -= _size(name)
            self.trimmed += 1
        return bucket, self.low[bucket]

    def given(self) -> Marks:
        """A copy for a node."""
        return Marks({bucket: dict(marks) for bucket, marks in self.by_bucket.items() if marks}, dict(self.low))
