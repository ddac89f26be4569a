"""The metrics of a worker, for Prometheus. No label is a key or a tenant: there are too many of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cachebus.base.clock import monotonic
from cachebus.consumers.monitoring.health import WorkerHealth

LAG_BUCKETS_S = (
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
    30.0,
    60.0,
    300.0,
    3600.0,
)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


UNLOOKED_S: Final = 10.0
"""A source that was not looked at for so long is out of reach: what waits there grows old unseen."""


class Meters:
    """The metrics of one worker. Outcomes of items are "applied", "dead" (set aside), "ignored" (for other caches, or
    no rule applies) and "again" (applied before, where that can be told)."""

    def __init__(self, health: WorkerHealth, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        worker = health.worker

        self._messages = Counter(
            "cachebus_worker_messages",
            "Rows, messages or changes done with, by what became of them",
            ["worker", "outcome"],
            registry=self.registry,
        )
        self._worker = worker
        self.lag_s = Histogram(
            "cachebus_worker_lag_seconds",
            "From commit, or sending, to applied in L2",
            ["worker"],
            buckets=LAG_BUCKETS_S,
            registry=self.registry,
        ).labels(worker)
        self.batch_size = Histogram(
            "cachebus_worker_batch_size",
            "Rows, messages or changes applied at a time",
            ["worker"],
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        ).labels(worker)
        self.in_flight = self._gauge("cachebus_worker_in_flight", "Taken, and not yet applied")
        self.held = self._gauge(
            "cachebus_worker_held", "Taken, and held for a primary of L2 that is away, while the rest goes on"
        )
        self.backlog = self._gauge("cachebus_worker_backlog", "Waiting at the source, as last looked at")
        self._gauge(
            "cachebus_worker_oldest_seconds",
            "How long the oldest has waited at most, as last looked at; where nobody can tell, since all was done last",
        ).set_function(self._oldest_now_s)
        self._looked_s = self._oldest_since_s = monotonic()
        self.latest_s = self._gauge(
            "cachebus_worker_latest_seconds", "Until the last of what waits at the source is due"
        )
        self._gauge(
            "cachebus_worker_progress_seconds", "Since something was let go of, while something waits; else 0"
        ).set_function(self._without_progress_s)
        self._waiting = 0
        self._in_hand = False
        self._moved_s = monotonic()
        self.scripts = Counter(
            "cachebus_worker_scripts",
            "Invalidations asked of L2, each of many commands",
            ["worker"],
            registry=self.registry,
        ).labels(worker)
        self.registry.register(_Up(health))
        for outcome in ("applied", "dead", "ignored", "again"):
            self._messages.labels(worker, outcome)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, ["worker"], registry=self.registry).labels(self._worker)

    def done(self, outcome: str, count: int = 1) -> None:
        """Count items with this outcome."""
        self._messages.labels(self._worker, outcome).inc(count)

    def waits(self, backlog: int | None, oldest_s: float | None) -> None:
        """Set how many items wait at the source, and how long the oldest has waited at most; None where nobody can
        tell. The age then counts since it was known last, be it that nothing waited."""
        if not self._waiting and not self._in_hand:
            self._moved_s = monotonic()
        self._waiting, self._looked_s = backlog or 0, monotonic()
        if backlog is not None:
            self.backlog.set(backlog)
        if oldest_s is not None or backlog == 0:
            self._oldest_since_s = self._looked_s - (oldest_s or 0.0)

    def lag(self, lag_s: float, count: int = 1) -> None:
        """So many items were applied `lag_s` after they were sent, or committed."""
        if count == 1:
            self.lag_s.observe(lag_s)
            return
        # As `observe` for all of them at once, which is much faster for many items that were written together.
        self.lag_s._sum.inc(lag_s * count)
        for at, bound in enumerate(self.lag_s._upper_bounds):
            if lag_s <= bound:
                self.lag_s._buckets[at].inc(count)
                break

    def takes(self) -> None:
        """A batch is in hand, until one is acknowledged."""
        self._in_hand = True

    def idles(self) -> None:
        """There is nothing to take."""
        self._in_hand = False

    def moved(self) -> None:
        """A batch was acknowledged."""
        self._in_hand, self._moved_s = False, monotonic()

    def _without_progress_s(self) -> float:
        return monotonic() - self._moved_s if self._waiting or self._in_hand else 0.0

    def _oldest_now_s(self) -> float:
        since_s = monotonic() - self._looked_s
        return self._looked_s - self._oldest_since_s + (since_s if since_s > UNLOOKED_S else 0.0)

    def count(self, outcome: str) -> int:
        """How many items had this outcome so far."""
        return int(
            self.registry.get_sample_value(
                "cachebus_worker_messages_total", {"worker": self._worker, "outcome": outcome}
            )
            or 0
        )


class _Up(Collector):
    def __init__(self, health: WorkerHealth) -> None:
        self._health = health

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily(
            "cachebus_worker_up", "Whether a part works that the worker needs", labels=["worker", "part"]
        )
        for part in self._health.parts:
            up.add_metric([self._health.worker, part], float(self._health.is_up(part)))
        yield up
        ready = GaugeMetricFamily("cachebus_worker_ready", "Whether the worker does its work", labels=["worker"])
        ready.add_metric([self._health.worker], float(self._health.ready))
        yield ready
