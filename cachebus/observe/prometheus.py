"""The figures of `Stats` for Prometheus (extra `metrics`): `registry.register(CacheCollector(cache.stats))`.

Names are `cachebus_*`. Labels are data types (at most 1 024 beside those that have a policy), shards and causes; never
keys or tenants, of which there are too many. A second cache of the same process needs a name,
`CacheCollector(other.stats, name="other")`, which becomes the label `cache` of all its figures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cachebus.errors import ConfigError
from cachebus.observe.stats import LatencyStats, Stats

_BY_TYPE = {
    "load_errors": "Loads that failed after their retries",
    "loads": "Loads from the source that were begun",
    "not_found": "Answers that the source has nothing",
    "not_modified": "Loads whose source said that the old value is still right",
    "refreshes": "Loads begun before a value expired",
    "serialization_errors": "Values that could not be encoded or decoded",
    "fallbacks": "Expired values served while the source failed",
}
_COUNTS = {
    "bus_reconnects": ("reconnects", "Connections to L2 or bus opened again"),
    "bus_publish_failures": ("bus_publish_failures", "Events that the bus did not take, left to the probes"),
    "bus_positions_lost": ("bus_positions_lost", "Times the bus no longer had what comes next of a partition"),
    "events_applied": ("events_applied", "Events applied"),
    "events_corrupt": ("events_corrupt", "Messages that were no events"),
    "events_unsigned": ("events_unsigned", "Messages that none of this node's keys had signed, passed over"),
    "events_flushed": ("events_flushed", "Events never seen, made up for by a flush"),
    "events_repeated": ("events_repeated", "Events that came again"),
    "events_foreign": ("events_foreign", "Events of another epoch"),
    "messages_unknown": ("messages_unknown", "Messages of a kind that is not known"),
    "watermarks_raised": ("watermarks_raised", "Times L2 forgot scopes and tags, as there were too many"),
    "lost_to_watermarks": ("lost_to_watermarks", "Values not believed for that reason alone"),
    "catch_ups": ("catch_ups", "Times that missing events were read from the log"),
    "gaps": ("gaps", "Times an event arrived before an earlier one"),
    "lease_lapses": ("lease_lapses", "Coherence leases that ran out"),
    "fills": ("fills", "Loaded values stored in L2"),
    "fills_rejected": ("fills_rejected", "Loaded values that L2 refused as replaced"),
    "entries_refused": ("entries_refused", "Values that this node's L1 refused as replaced"),
    "invalidations": ("invalidations", "Invalidations asked of L2"),
    "invalidations_failed": ("invalidations_failed", "Invalidations that were not sure to have happened"),
    "invalidations_repeated": ("invalidations_repeated", "Invalidations repeated after a failover or loss of L2"),
    "resend_dropped": ("resend_dropped", "Invalidations that left the resend buffer early, for want of room"),
    "guards": ("guards", "Write guards put up"),
    "guards_left": ("guards_left", "Write guards that stood to their time-out"),
    "guards_lost": ("guards_lost", "Write guards that were lost with their epoch"),
    "guarded_loads": ("guarded_loads", "Loads whose value was not kept, for a write guard"),
    "pending_delivered": ("pending_delivered", "Invalidations that waited for L2, and were delivered"),
    "pending_lost": ("pending_lost", "Invalidations that waited for L2 until the cache was closed"),
    "hook_events_dropped": ("hook_events_dropped", "Events that no hook was told, as too many waited"),
    "hook_failures": ("hook_failures", "Times a callback of a hook has failed"),
    "records_corrupt": ("records_corrupt", "Records in L2 that were damaged, or another key's"),
    "records_of_other_versions": ("records_of_other_versions", "Records in L2 of another version of their policy"),
    "records_not_decrypted": ("records_not_decrypted", "Records in L2 that were not decrypted, or not encrypted"),
    "l2_errors": ("l2_errors", "Operations on L2 that failed"),
    "warmed": ("warmed", "Values taken over by the names that another node has told"),
    "l1_evictions": ("l1_evictions", "Entries that left L1 for want of room"),
}
_GAUGES = {
    "l1_entries": "Entries in L1",
    "l1_bytes": "Estimated size of L1 in bytes",
    "flights": "Loads under way",
    "warming": "Whether values are still taken over from another node",
    "pending": "Invalidations that wait for L2",
    "nodes_elsewhere": "Nodes of the namespace that do not hear us, or we them: another Kafka, topic or key",
    "loose_replicas": "Replicas, there or gone, of a primary whose min-replicas-to-write is 0, at most",
    "shards_refused": "Shards that are laid out for nodes of other settings: each call in them raises",
    "l2_connected": "Whether L2 is connected",
    "bus_connected": "Whether the bus is connected",
}


_OWN_LABELS = frozenset(("cache", "cause", "data_type", "le", "outcome", "quantile", "shard"))
_LABEL = re.compile("(?!__)[A-Za-z_][A-Za-z0-9_]*").fullmatch


class CacheCollector(Collector):
    """Collects one cache's figures whenever Prometheus asks; give it the cache's `stats` method.

    `name`: what tells this cache from others of the process, the label `cache`; "" is no label. A registry refuses a
    second collector of the same name (`ValueError`), so unregister one whose cache is closed for good.

    `labels`: what else its figures carry, such as the service's name and the worker's number. Nothing random: each new
    label makes every figure a new series. `ConfigError` for a name that its own figures have, or that is none.
    """

    def __init__(
        self, stats: Callable[[], Stats], *, name: str = "", labels: Mapping[str, str | int] | None = None
    ) -> None:
        self._stats = stats
        self._name = name
        self._labels = {label: str(value) for label, value in (labels or {}).items()}
        for label in self._labels:
            if label in _OWN_LABELS or not _LABEL(label):
                raise ConfigError(f"labels: {label!r} is a label of the cache's own figures, or no name of a label")
        if name:
            self._labels["cache"] = name

    def describe(self) -> list[Metric]:
        """No family ahead of time, since a cache may be registered before it is open; but a name, so that a registry
        that has one of the same sees that."""
        mine = Metric("cachebus", "", "unknown")
        # After the constructor, which takes only names of metrics: this one is read by whoever registers two.
        mine.name = (
            f"a CacheCollector named {self._name!r}; give each its own: CacheCollector(cache.stats, name=...), "
            "or unregister the one whose cache is closed"
        )
        return [mine]

    def collect(self) -> Iterator[Metric]:
        """All metric families as they stand now; none while the cache is not open, so that a scrape of all others
        goes on."""
        try:
            stats = self._stats()
        except ConfigError:
            return
        for family in self._families(stats):
            for sample in family.samples:
                sample.labels.update(self._labels)
            yield family

    def _families(self, stats: Stats) -> Iterator[Metric]:
        yield from _by_type(stats)
        yield from _by_shard(stats)
        for name, (attribute, text) in _COUNTS.items():
            yield CounterMetricFamily(f"cachebus_{name}", text, value=getattr(stats, attribute))
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"cachebus_{name}", text, value=float(getattr(stats, name)))
        flushes = CounterMetricFamily("cachebus_flushes", "Times a shard's L1 was dropped whole", labels=["cause"])
        for cause, count in sorted(stats.flushes.items()):
            flushes.add_metric([cause], count)
        yield flushes
        yield _histogram("cachebus_load_seconds", "Loads from the source", stats.load_latency)
        yield _histogram("cachebus_l2_seconds", "Scripts in L2", stats.l2_latency)
        yield _histogram("cachebus_bus_lag_seconds", "From an event's publication to its application", stats.bus_lag)


def _by_type(stats: Stats) -> Iterator[Metric]:
    requests = CounterMetricFamily("cachebus_requests", "Reads by where they ended", labels=["data_type", "outcome"])
    for data_type, counts in stats.types.items():
        for outcome, count in (("l1", counts.l1_hits), ("l2", counts.l2_hits), ("miss", counts.misses)):
            requests.add_metric([data_type, outcome], count)
    yield requests
    for name, text in _BY_TYPE.items():
        family = CounterMetricFamily(f"cachebus_{name}", text, labels=["data_type"])
        for data_type, counts in stats.types.items():
            family.add_metric([data_type], getattr(counts, name))
        yield family


def _by_shard(stats: Stats) -> Iterator[Metric]:
    applied = GaugeMetricFamily("cachebus_applied_seq", "How far events are applied", labels=["shard"])
    gap = GaugeMetricFamily("cachebus_gap_events", "Events known of and not applied in order", labels=["shard"])
    lease = GaugeMetricFamily("cachebus_lease_left_seconds", "What is left of the coherence lease", labels=["shard"])
    for shard in stats.shards:
        label = [str(shard.shard)]
        applied.add_metric(label, shard.applied)
        gap.add_metric(label, shard.gap)
        lease.add_metric(label, shard.lease_left_s)
    yield from (applied, gap, lease)


def _histogram(name: str, text: str, latency: LatencyStats) -> HistogramMetricFamily:
    buckets, total = [], 0
    for bound_s, count in zip(latency.bounds_s, latency.buckets, strict=True):
        total += count
        buckets.append(("+Inf" if bound_s == float("inf") else str(bound_s), float(total)))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=latency.total_s)
