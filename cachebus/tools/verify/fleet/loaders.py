"""The loaders of one node. Each load reads the committed version half way through, and is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any, Final

from cachebus import Cache, ConfigError
from cachebus.base.clock import Clock
from cachebus.tools.verify.fleet.anomalies import CYCLE_UNDETECTED, Anomalies
from cachebus.tools.verify.fleet.data_types import LOAD_S, as_loaded
from cachebus.tools.verify.fleet.history_log import VERB_SHIFT, HistoryLog
from cachebus.tools.verify.fleet.items import SourceItem
from cachebus.tools.verify.fleet.setup import LEASE_MS
from cachebus.tools.verify.fleet.source_of_truth import SourceOfTruth

Load = Callable[[], Awaitable[Any]]
QUICK_S: Final = (0.001, 0.003)
LATER_S: Final = (0.01, 0.06)
SLOW_S: Final = (1.2 * LEASE_MS / 1000, 2.5 * LEASE_MS / 1000)
"""Longer than a lease, so that the loading node must extend it."""
LATER_SHARE, SLOW_SHARE = 0.08, 0.01
TIDY_S: Final = (0.0, 0.03)
"""How long a cancelled load takes to end, as if it gave a connection back."""
NEVER: Final = float("-inf")
SPECIAL, ORDINARY, UNKEPT = 0, 1, 2
"""Kinds of loads: for a read that skips L1 or carries a token; that other reads may share; and that leave nothing in
the cache, since the value can't be cached, or nobody waited for it."""
FOREVER_S: Final = 3_600.0


class Odd(Exception):
    """An error of the source that is not retried."""


class Uncacheable:
    """A value that can't be serialized."""


class Loaders:
    """The loaders: one for every item and kind, made once."""

    def __init__(
        self,
        caches: Sequence[Cache],
        items: Sequence[SourceItem],
        source: SourceOfTruth,
        log: HistoryLog,
        anomalies: Anomalies,
        rng: Random,
        clock: Clock,
    ) -> None:
        self._caches, self._source, self._log, self._anomalies = caches, source, log, anomalies
        self._rng, self._clock = rng, clock
        self.slow_until_s = self.sour_until_s = self.stuck_until_s = NEVER
        self.loads = 0
        self.ordinary: list[Any] = [item and self._loader(item, ORDINARY) for item in items]
        """For reads that may share another read's load, by item."""
        self.special: list[Any] = [item and self._loader(item, SPECIAL) for item in items]
        """For reads that skip L1, or carry a token, by item."""

    def _loader(self, item: SourceItem, kind: int) -> Load:
        async def load() -> Any:
            self.loads += 1
            began_s, version, code = self._clock(), 0, item.number | kind << VERB_SHIFT
            place = self._log.add(code, 0, began_s, 0.0)
            half_s = self._latency_s() / 2
            try:
                await asyncio.sleep(half_s)
                await self._misbehave(item)
                version = self._source.versions[item.number]
                await asyncio.sleep(half_s)
                value = as_loaded(item.data_type, item.value(version))
                if item.data_type == "odd" and self._rng.random() < 0.1:
                    value.append(Uncacheable())
                    code = item.number | UNKEPT << VERB_SHIFT
                return value
            except ConfigError:
                code = item.number | UNKEPT << VERB_SHIFT  # it waits for itself, which is no failure of the source
                raise
            except asyncio.CancelledError:
                if self._clock() - began_s < LOAD_S * 0.9:
                    code = item.number | UNKEPT << VERB_SHIFT  # nobody waits any more, so the source did not fail
                await asyncio.sleep(self._rng.uniform(*TIDY_S))
                raise
            finally:
                self._log.change(place, code, version, began_s, self._clock())

        return load

    def of_many(self, items: Mapping[str, SourceItem]) -> Callable[[list[str]], Awaitable[dict[str, Any]]]:
        """A loader of several items by their ids, of types that do nothing odd."""

        async def load(ids: list[str]) -> dict[str, Any]:
            asked = {one: items[one] for one in ids}
            self.loads += len(asked)
            began_s, versions, kind = self._clock(), dict.fromkeys(asked, 0), ORDINARY
            places = {
                one: self._log.add(item.number | kind << VERB_SHIFT, 0, began_s, 0.0) for one, item in asked.items()
            }
            half_s = self._latency_s() / 2
            try:
                await asyncio.sleep(half_s)
                await self._misbehave(asked[ids[0]])
                versions = {one: self._source.versions[item.number] for one, item in asked.items()}
                await asyncio.sleep(half_s)
                return {one: as_loaded(item.data_type, item.value(versions[one])) for one, item in asked.items()}
            except asyncio.CancelledError:
                if self._clock() - began_s < LOAD_S * 0.9:
                    kind = UNKEPT  # nobody waits any more, so the source did not fail
                await asyncio.sleep(self._rng.uniform(*TIDY_S))
                raise
            finally:
                for one, item in asked.items():
                    code = item.number | kind << VERB_SHIFT
                    self._log.change(places[one], code, versions[one], began_s, self._clock())

        return load

    async def _misbehave(self, item: SourceItem) -> None:
        """Fail, hang, be cancelled or ask for the own key: by the node's orders, and at random for the type "odd"."""
        now_s = self._clock()
        if now_s < self.sour_until_s:
            raise ConnectionError("the source is away")
        if now_s < self.stuck_until_s:
            await asyncio.sleep(FOREVER_S)
        if item.data_type != "odd":
            return
        kind = self._rng.random()
        if kind < 0.05:
            raise Odd
        if kind < 0.08:
            raise asyncio.CancelledError
        if kind < 0.1:
            await asyncio.sleep(FOREVER_S)
        if kind < 0.15:
            await self._ask_itself(item)

    async def _ask_itself(self, item: SourceItem) -> None:
        """Ask for the key that is being loaded. The library must refuse that at once, by the error for a circle."""
        cache = self._caches[item.cache_index]
        started_s = self._clock()
        try:
            await cache.get_or_load(item.data_type, item.resource_id, self.ordinary[item.number], *item.place)
        except ConfigError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Exception) or self._clock() - started_s > LOAD_S / 2:
                self._anomalies.note(CYCLE_UNDETECTED, item, started_s)
            raise

    def _latency_s(self) -> float:
        kind = self._rng.random()
        if self._clock() < self.slow_until_s:
            kind /= 4
        if kind < SLOW_SHARE:
            return self._rng.uniform(*SLOW_S)
        return self._rng.uniform(*(LATER_S if kind < SLOW_SHARE + LATER_SHARE else QUICK_S))
