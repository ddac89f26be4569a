"""The two caches that a run compares: cachebus, and a dict with a TTL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from cachebus import Cache, Settings
from cachebus.base.clock import Clock
from cachebus.tools.demo.catalogue import CatalogueItem, SlowSource
from cachebus.tools.demo.history import DemoLog
from cachebus.tools.demo.trace import name_of, word_of
from cachebus.tools.harness.messages import Job

TENANT: Final = "shop"
TTL_S: Final = 600.0
"""Nothing that a run has stored outlives it by more, however the run ends."""
CLOSE_S: Final = 1.0
Load = Callable[[str], Awaitable[CatalogueItem]]


class Subject(Protocol):
    """A cache in front of the source."""

    async def read(self, word: int) -> CatalogueItem:
        """The row, from the cache or the source."""

    async def invalidate(self, word: int) -> tuple[int, int]:
        """Invalidate a row that was written. Returns the event's epoch and seq, or zeros where there is no event."""

    def figures(self) -> dict[str, Any]:
        """The fields of a `Tick` that the cache knows."""


class Coherent:
    """cachebus."""

    def __init__(self, cache: Cache, source: SlowSource) -> None:
        self._cache = cache
        self._source = source
        # One loader for each type: the library inspects a loader's signature once.
        self._loaders: dict[str, Load] = {}

    async def read(self, word: int) -> CatalogueItem:
        """Through L1 and L2."""
        data_type, resource_id = name_of(word)
        loader = self._loaders.get(data_type)
        if loader is None:
            loader = self._loaders[data_type] = self._loader(data_type)
        item: CatalogueItem = await self._cache.get_or_load(data_type, resource_id, loader, tenant_id=TENANT, ttl=TTL_S)
        return item

    async def invalidate(self, word: int) -> tuple[int, int]:
        """Invalidate everywhere."""
        receipt = await self._cache.invalidate(*name_of(word), tenant_id=TENANT)
        return int(receipt.epoch, 16), receipt.seq

    def figures(self) -> dict[str, Any]:
        """From the library's own statistics, but the loads, which the source counts."""
        stats = self._cache.stats()
        return {
            "l1_hits": stats.l1_hits,
            "l2_hits": stats.l2_hits,
            "loads": self._source.loads,
            "applied": stats.shards[0].applied,
            "lease_left_s": stats.shards[0].lease_left_s,
        }

    def _loader(self, data_type: str) -> Load:
        async def load(resource_id: str) -> CatalogueItem:
            return await self._source.load(word_of(data_type, resource_id))

        return load


class DictWithTtl:
    """What a service has without cachebus: a dict in each process. A write drops the row from the writer's dict
    alone."""

    def __init__(self, source: SlowSource, *, ttl_s: float, entries_max: int, clock: Clock) -> None:
        self._source = source
        self._ttl_s = ttl_s
        self._entries_max = entries_max
        self._clock = clock
        self._entries: dict[int, tuple[CatalogueItem, float]] = {}
        self._hits = 0

    async def read(self, word: int) -> CatalogueItem:
        """Through the dict."""
        entry = self._entries.get(word)
        if entry is not None and self._clock() < entry[1]:
            self._hits += 1
            return entry[0]
        item = await self._source.load(word)
        self._entries[word] = item, self._clock() + self._ttl_s
        if len(self._entries) > self._entries_max:
            del self._entries[next(iter(self._entries))]
        return item

    async def invalidate(self, word: int) -> tuple[int, int]:
        """Drop the own entry."""
        self._entries.pop(word, None)
        return 0, 0

    def figures(self) -> dict[str, Any]:
        """Counted here."""
        return {"l1_hits": self._hits, "loads": self._source.loads}


@asynccontextmanager
async def open_subject(job: Job, source: SlowSource, applied: DemoLog, clock: Clock) -> AsyncIterator[Subject]:
    """The subject of a job, open; what it applies is noted."""
    if job.url is None:
        yield DictWithTtl(source, ttl_s=job.ttl_s, entries_max=job.l1_entries, clock=clock)
        return
    async with Cache.open(settings_of(job)) as cache:
        cache.on_applied = lambda _shard, epoch, seq, at_s: applied.add(int(epoch, 16), seq, at_s)
        yield Coherent(cache, source)


def settings_of(job: Job) -> Settings:
    """The library's settings for a job with a URL; what is not named here is as it comes."""
    if job.url is None:
        raise ValueError("a job without a URL has no cache")
    interval_s = min(0.5, job.bound_s / 4)
    return Settings(
        url=job.url,
        namespace=job.namespace,
        node_name=f"node-{job.node}",
        staleness_bound_s=job.bound_s,
        probe_interval_s=interval_s,
        gap_grace_s=min(0.05, interval_s),
        l1_max_entries=job.l1_entries,
        close_timeout_s=CLOSE_S,
        bus="redis" if job.kafka is None else "kafka",
        kafka_bootstrap_servers=job.kafka,
    )
