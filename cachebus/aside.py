"""Cache-aside beyond the fast path: a database, then what may be generated in its place, and how it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cachebus import context
from cachebus.base.ids import Id
from cachebus.base.parameters import Source
from cachebus.cache import Cache
from cachebus.context import Context
from cachebus.errors import ConfigError
from cachebus.keys.key import Key
from cachebus.policy import Rules, check_ttl
from cachebus.reading.request import Failing, Found, Loaded
from cachebus.reading.source import Bound, bind, leave_if_cancelled, shareable

Metrics = dict[str, Any]

TEMPLATE: Metrics = {
    "source": "cache",
    "level": "l1",
    "cache_hit": True,
    "cache_check_time_ms": 0.0,
    "db_check_time_ms": 0.0,
    "generation_time_ms": 0.0,
    "total_time_ms": 0.0,
    "latency_ms": 0.0,
    "data_type": "",
    "resource_id": "",
    "serialization_error": False,
    "error": None,
}


class Aside:
    """One call of cache-aside that L1's fast path did not answer."""

    def __init__(
        self,
        cache: Cache,
        key: Key,
        data_type: str,
        resource_id: Id,
        fetch: Source | None,
        generate: Source | None,
        serializer: Callable[[Any], Any] | None,
    ) -> None:
        self._cache, self._key = cache, key
        self._asked = data_type, resource_id
        self._fetch, self._generate, self._serializer = fetch, generate, serializer
        self._rules: Rules = cache.rules(key.family.data_type)
        self._clock = cache._clock

    async def run(
        self, ctx: Context | None, ttl: float | None, deserializer: Callable[[Any], Any] | None, started: float
    ) -> tuple[Any, Metrics]:
        """Look, load, and say how it went."""
        around = ctx if ctx is not None else context.current()
        ttl = None if ttl is None else check_ttl(ttl)
        sources = [
            (name, bind(function, self._asked[1], self._key.family.tenant or None, around))
            for name, function in (("database", self._fetch), ("generation", self._generate))
            if function is not None
        ]
        error: BaseException | None = None
        found = Found(None, None)
        try:
            found = await self._cache.load(
                self._key, lambda: self._load(sources), self._rules, search=True, ttl=ttl, sources=len(sources) or 1
            )
        except ConfigError:
            raise
        except Exception as failed:  # noqa: BLE001 (bad input has been refused above: this is the source's, or L2's)
            error = failed
        value, refused = found.value, found.loaded is not None and found.loaded.refused is not None
        if value is not None and deserializer is not None and not refused:
            value, error = _deserialized(deserializer, value)
        metrics = self._metrics(found, error, (self._clock() - started) * 1000.0)
        if around is not None:
            around.add_metric("cache_hit", metrics["cache_hit"])
        return value, metrics

    async def _load(
        self, sources: Sequence[tuple[str, Bound]], failed: Exception | None = None, failed_ms: float = 0.0
    ) -> Loaded:
        """Database, then generation; `Failing` where what is generated would hide that the database has `failed`."""
        value, source, took_ms = None, "database", {"database": failed_ms, "generation": 0.0}
        for i, (name, bound) in enumerate(sources):
            began = self._clock()
            try:
                value = await self._cache.call_source(bound, self._rules)
            except ConfigError:
                raise  # a function that can't be used: what is generated in its place would hide that
            except Exception as error:
                if i + 1 == len(sources):
                    raise
                ms = (self._clock() - began) * 1000.0
                raise Failing(error, partial(self._load, sources[i + 1 :], error, ms)) from error
            source, took_ms[name] = name, (self._clock() - began) * 1000.0
            if value is not None or i + 1 == len(sources):
                break
            leave_if_cancelled()
        if value is None and failed is not None:
            raise Failing(failed, partial(self._load, (), failed))  # nobody says that there is nothing
        refused = None
        if value is not None and self._serializer is not None:
            try:
                value = shareable(self._serializer(value), self._serializer)
            except ConfigError:
                raise
            except Exception as error:  # noqa: BLE001 (a caller's function may raise anything: it is reported)
                refused = error
        return Loaded(value, source, took_ms["database"], took_ms["generation"], failed, refused)

    def _metrics(self, found: Found, error: BaseException | None, took_ms: float) -> Metrics:
        metrics = TEMPLATE.copy()
        loaded = found.loaded
        hit = found.level is not None and not found.stale
        metrics["data_type"], metrics["resource_id"] = self._asked
        metrics["cache_hit"], metrics["level"] = hit, found.level if hit else None
        metrics["serialization_error"] = found.serialization_error
        metrics["error"] = error if loaded is None or error is not None else loaded.error
        metrics["total_time_ms"] = metrics["latency_ms"] = took_ms
        if loaded is not None:
            metrics["db_check_time_ms"], metrics["generation_time_ms"] = loaded.db_ms, loaded.generation_ms
            took_ms = max(0.0, took_ms - loaded.db_ms - loaded.generation_ms)
        metrics["cache_check_time_ms"] = took_ms
        if error is not None:
            metrics["source"] = "error"
        elif found.stale:
            metrics["source"] = "stale"
        elif found.value is None:
            metrics["source"] = "not_found"
        elif loaded is not None:
            metrics["source"] = loaded.source
        return metrics


def _deserialized(deserializer: Callable[[Any], Any], value: Any) -> tuple[Any, BaseException | None]:
    try:
        return deserializer(value), None
    except Exception as error:  # noqa: BLE001 (a caller's function may raise anything: it is reported)
        return None, error
