"""The marks of one shard in memory: the twin of what the scripts keep in sorted sets, a bucket of tenants each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil

from cachebus.core.ports import Invalidated
from cachebus.keys.key import ALL_TENANTS, bucket_of_scope
from cachebus.wire.event import NONE_RAISED, LowWatermark

BATCH_PART = 128
LONG_BYTES = 256


def _size(name: str) -> int:
    return 1 + len(name.encode()) // LONG_BYTES


class MemoryInvalidated:
    """For each bucket the seq of each name, the oldest first, and the bucket's low watermark."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.by_bucket: dict[str, dict[str, int]] = {}
        self.low: dict[str, int] = {}
        self.trimmed = 0
        self.counted: dict[str, int] = {}
        """How many there should be, by bucket: fewer, and some were lost."""
        self.sizes: dict[str, int] = {}
        """The size of their names, by bucket."""
        self.lost = False
        """Whether so much is lost that every script notices."""

    def lacks(self, bucket: str) -> bool:
        """Whether marks are missing, as after an eviction, of those by which a record in this bucket is judged; with ""
        of those by which any is."""
        looked_at = (bucket, ALL_TENANTS) if bucket else self.counted
        return any(len(self.by_bucket.get(b, ())) != self.counted.get(b, 0) for b in looked_at)

    def lose(self, bucket: str = "") -> None:
        """Play an eviction of one bucket's marks, or of all."""
        for lost in [bucket] if bucket else list(self.by_bucket):
            self.by_bucket.pop(lost, None)

    def lose_counts(self) -> None:
        """Play an eviction of what is known of the buckets."""
        self.lost = bool(self.counted)
        self.counted, self.sizes, self.low = {}, {}, {}

    def hide(self, seq: int, bucket: str, scopes: Iterable[str]) -> bool:
        """Whether a record of this seq, in a key of this bucket with these scopes and tags, was replaced."""
        if seq < max(self.low.get(bucket, 0), self.low.get(ALL_TENANTS, 0)):
            return True
        own, wide = self.by_bucket.get(bucket, {}), self.by_bucket.get(ALL_TENANTS, {})
        return any(own.get(name, 0) > seq or wide.get(name, 0) > seq for name in scopes)

    def set(self, scopes: Sequence[str], seq: int) -> LowWatermark:
        """Move these to `seq`. Gives the low watermark that this has raised."""
        added = False
        for name in scopes:
            bucket = bucket_of_scope(name)
            invalidated = self.by_bucket.setdefault(bucket, {})
            if invalidated.pop(name, None) is None:  # re-inserted last: the oldest come first
                self._count(bucket, 1, _size(name))
                added = True
            invalidated[name] = seq
        excess = sum(self.sizes.values()) - self.most
        return self._trim(excess) if added and excess > 0 else NONE_RAISED

    def _count(self, bucket: str, count: int, size: int) -> None:
        self.counted[bucket] = self.counted.get(bucket, 0) + count
        self.sizes[bucket] = self.sizes.get(bucket, 0) + size

    def _trim(self, excess: int) -> LowWatermark:
        bucket = min(self.sizes, key=lambda b: (-self.sizes[b], b))
        invalidated = self.by_bucket.get(bucket, {})
        if not invalidated:
            self.lost = True
            return NONE_RAISED
        oldest = sorted(invalidated, key=lambda name: (invalidated[name], name.encode()))
        for name in oldest[: max(excess, ceil(self.most / BATCH_PART))]:
            self.low[bucket] = invalidated.pop(name)
            self._count(bucket, -1, -_size(name))
            self.trimmed += 1
        return LowWatermark(bucket, self.low[bucket])

    def given(self) -> Invalidated:
        """A copy for a node."""
        return Invalidated(
            {bucket: dict(invalidated) for bucket, invalidated in self.by_bucket.items() if invalidated}, dict(self.low)
        )
