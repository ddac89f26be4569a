"""The figures of a cache at one moment, as `cache.stats()` gives them. All counts are since the cache was opened."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LatencyStats:
    """A histogram: `buckets[i]` observations took at most `bounds_s[i]` seconds (not cumulative; the last is +inf)."""

    count: int
    total_s: float
    bounds_s: tuple[float, ...]
    buckets: tuple[int, ...]

    @property
    def mean_s(self) -> float:
        """Mean of all observations in seconds; 0.0 when there are none."""
        return self.total_s / self.count if self.count else 0.0

    def quantile_s(self, q: float) -> float:
        """Upper bound in seconds of the bucket that holds quantile `q` (0–1); 0.0 when there are none."""
        rank, seen = q * self.count, 0
        for bound_s, bucket in zip(self.bounds_s, self.buckets, strict=True):
            seen += bucket
            if bucket and seen >= rank:
                return bound_s
        return 0.0


@dataclass(frozen=True, slots=True)
class TypeStats:
    """What was asked for one data type, and how it was answered."""

    l1_hits: int = 0
    l2_hits: int = 0
    misses: int = 0
    """Reads that neither level could answer."""
    loads: int = 0
    """Loads from the source that were begun."""
    load_errors: int = 0
    """Loads that failed after their retries."""
    not_found: int = 0
    """Loads, or cached answers, that said the source has nothing."""
    stale_served: int = 0
    """Expired (never invalidated) values served because the source failed or was slow."""
    refreshes: int = 0
    """Loads begun in the background before a value expired."""
    serialization_errors: int = 0
    """Values that could not be encoded, and payloads that could not be decoded."""


@dataclass(frozen=True, slots=True)
class ShardStats:
    """One shard as this node sees it."""

    shard: int
    epoch: str
    applied: int
    """How far events have been applied without a gap."""
    head: int
    """The highest seq heard of; `head - applied` is the gap."""
    lease_left_s: float
    """For how long this node may serve its memory; 0.0 when the lease has lapsed."""
    marks: int

    @property
    def gap(self) -> int:
        """Events known of and not yet applied in order."""
        return self.head - self.applied


@dataclass(frozen=True, slots=True)
class Stats:
    """Everything that a cache counts."""

    node: str
    types: dict[str, TypeStats]
    shards: tuple[ShardStats, ...]
    l1_entries: int
    l1_bytes: int
    l1_evictions: int
    events_applied: int
    events_repeated: int
    """Events that came again, or that the log had brought already."""
    events_corrupt: int
    events_flushed: int
    """Events that were never seen, because the log no longer had them: all of L1 was dropped instead."""
    holes: int
    """Times an event arrived before an earlier one."""
    catch_ups: int
    """Times that missing events were read from the log."""
    flushes: dict[str, int]
    """Times all of a shard's L1 was dropped, by cause: epoch, gap, start."""
    lease_lapses: int
    """Times a shard's lease ran out before a probe renewed it."""
    fills: int
    fills_rejected: int
    """Loaded values that L2 refused, since something replaced them meanwhile, or their lease was gone."""
    entries_refused: int
    """Values that did not enter L1, for the same reason on this node."""
    invalidations: int
    invalidations_failed: int
    guards: int
    """Write guards put up."""
    guards_left: int
    """Those of them that were left standing to their time-out, by an exception in their block or a long one."""
    guarded_loads: int
    """Loads whose value nobody could keep, for somebody's guard."""
    pending: int
    """Invalidations that wait for L2 now."""
    pending_delivered: int
    pending_lost: int
    """Invalidations that waited for L2 until this cache was closed."""
    records_corrupt: int
    l2_errors: int
    """Operations on L2 that failed or timed out."""
    l2_connected: bool
    bus_connected: bool
    reconnects: int
    flights: int
    """Loads under way now."""
    load_latency: LatencyStats = field(repr=False)
    l2_latency: LatencyStats = field(repr=False)
    bus_lag: LatencyStats = field(repr=False)
    """From an event's publication to its application on this node, on L2's clock (± half a round trip)."""

    def _sum(self, name: str) -> int:
        return sum(getattr(t, name) for t in self.types.values())

    @property
    def l1_hits(self) -> int:
        """Reads answered from this node's memory, of all types."""
        return self._sum("l1_hits")

    @property
    def l2_hits(self) -> int:
        """Reads answered from L2, of all types."""
        return self._sum("l2_hits")

    @property
    def misses(self) -> int:
        """Reads that neither level could answer, of all types."""
        return self._sum("misses")

    @property
    def loads(self) -> int:
        """Loads begun, of all types."""
        return self._sum("loads")

    @property
    def requests(self) -> int:
        """All reads."""
        return self.l1_hits + self.l2_hits + self.misses

    @property
    def hit_ratio(self) -> float:
        """Share of reads that L1 or L2 answered, 0–1; 0.0 when nothing was read."""
        return (self.l1_hits + self.l2_hits) / self.requests if self.requests else 0.0
