"""What a cache counts, and how it is seen from outside."""

from cachebus.observe.counters import OTHER, TYPES_MAX, Counters, Latency, TypeCounters
from cachebus.observe.stats import Health, LatencyStats, ShardStats, Stats, TypeStats

__all__ = [
    "OTHER",
    "TYPES_MAX",
    "Counters",
    "Health",
    "Latency",
    "LatencyStats",
    "ShardStats",
    "Stats",
    "TypeCounters",
    "TypeStats",
]
