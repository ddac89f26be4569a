"""The live counters behind `Stats`: plain attributes, so that counting costs an addition."""

from __future__ import annotations

from bisect import bisect_left

from cachebus.observe.stats import LatencyStats, TypeStats

BOUNDS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    float("inf"),
)

TYPES_MAX = 1024
"""Data types that a node tells apart, beside those that have a policy: callers may make up any number of them."""
OTHER = "(other)"
"""Stands for all the others, in counters, labels and groups."""


class Latency:
    """A histogram of durations in seconds."""

    __slots__ = ("buckets", "total_s")

    def __init__(self) -> None:
        self.buckets = [0] * len(BOUNDS_S)
        self.total_s = 0.0

    def observe(self, took_s: float) -> None:
        """Count one duration (a negative one, by clock error, as none)."""
        took_s = max(took_s, 0.0)
        self.total_s += took_s
        self.buckets[bisect_left(BOUNDS_S, took_s)] += 1

    def snapshot(self) -> LatencyStats:
        """The histogram as it is now."""
        return LatencyStats(sum(self.buckets), self.total_s, BOUNDS_S, tuple(self.buckets))


class TypeCounters:
    """Counters of one data type; hits in L1 are counted in its groups."""

    __slots__ = (
        "fallbacks",
        "l1_hits",
        "l2_hits",
        "load_errors",
        "loads",
        "misses",
        "not_found",
        "not_modified",
        "refreshes",
        "serialization_errors",
    )

    def __init__(self) -> None:
        self.l1_hits = self.l2_hits = self.misses = self.loads = self.load_errors = 0
        self.not_found = self.not_modified = self.refreshes = self.serialization_errors = self.fallbacks = 0

    def snapshot(self, group_hits: int) -> TypeStats:
        """The counters as they are now, with the hits that the live groups hold."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["l1_hits"] += group_hits
        return TypeStats(**values)


class Counters:
    """Counters of one node."""

    def __init__(self) -> None:
        self.events_applied = self.events_repeated = self.events_corrupt = self.events_flushed = 0
        self.events_foreign = self.messages_unknown = self.watermarks_raised = self.lost_to_watermarks = 0
        self.gaps = self.catch_ups = self.lease_lapses = 0
        self.fills = self.fills_rejected = self.entries_refused = 0
        self.invalidations = self.invalidations_failed = self.invalidations_repeated = self.resend_dropped = 0
        self.guards = self.guards_left = self.guards_lost = self.guarded_loads = 0
        self.pending_delivered = self.pending_lost = 0
        self.hook_events_dropped = self.hook_failures = 0
        self.records_corrupt = self.records_of_other_versions = self.records_not_decrypted = self.l2_errors = 0
        self.warmed = 0
        self.bus_publish_failures = self.bus_positions_lost = self.events_unsigned = 0
        self.flushes: dict[str, int] = {}
        self.types: dict[str, TypeCounters] = {}
        """By the name that `name_of` gives."""
        self._known: set[str] = set()
        self._room = TYPES_MAX
        self.load_latency, self.l2_latency, self.bus_lag = Latency(), Latency(), Latency()

    def of(self, data_type: str) -> TypeCounters:
        """The counters of a data type."""
        found = self.types.get(data_type)
        if found is None:
            name = self.name_of(data_type)
            found = self.types.get(name) or TypeCounters()
            self.types[name] = found
        return found

    def name_of(self, data_type: str) -> str:
        """The name under which a data type is counted and grouped: its own, or `OTHER` once there are `TYPES_MAX` that
        were not declared. A type keeps the name that it was first given, unless it is declared later."""
        if data_type in self._known:
            return data_type
        if not self._room:
            return OTHER
        self._room -= 1
        self._known.add(data_type)
        return data_type

    def declare(self, data_type: str) -> bool:
        """Have a data type go by its own name, however many there are; whether it may have been among the others."""
        among_others = not self._room and data_type not in self._known
        self._known.add(data_type)
        return among_others

    def flushed(self, cause: str) -> None:
        """Count a flush of a shard's L1."""
        self.flushes[cause] = self.flushes.get(cause, 0) + 1
