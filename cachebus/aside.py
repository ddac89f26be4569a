"""Cache-aside with two sources and a report: what `get_with_cache_aside` does when L1's fast path has no answer.

1. The functions that were given are bound to the call's ids, so that what is wrong with them is raised at once.
2. The read path looks, and loads: the database first, then what may be generated in its place (`Aside._load`).
3. What the deserializer makes of the value is given, with the metrics that tell how it went.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict

from cachebus import context
from cachebus.assembly.factory import Parts
from cachebus.base.choices import Origin
from cachebus.base.ids import Id
from cachebus.base.log import logger
from cachebus.base.parameters import SourceFunction
from cachebus.calls import checked_ttl
from cachebus.context import Context
from cachebus.decided import Previous
from cachebus.errors import ConfigError
from cachebus.keys.key import Key
from cachebus.keys.naming import tag_scopes
from cachebus.reading.request import Failing, Found, Loaded, Request
from cachebus.reading.source import Bound, WithPrevious, bind, call_by, leave_if_cancelled, loaded_of, shareable


class Metrics(TypedDict):
    """How a call of `get_with_cache_aside` went; an ordinary dict."""

    source: Literal["cache", "database", "generation", "stale", "not_found", "error"]
    """Where the value is from; or that there is none, and why."""
    level: Literal["l1", "l2"] | None
    """The level that had it, None where it was loaded."""
    cache_hit: bool
    cache_check_time_ms: float
    db_check_time_ms: float
    generation_time_ms: float
    total_time_ms: float
    latency_ms: float
    """The same as `total_time_ms`."""
    data_type: str
    resource_id: Id
    serialization_error: bool
    """Whether the value could not be encoded, and so is not cached."""
    error: BaseException | None
    """What a function raised, or L2, also where something else was served in its place."""


class Options(TypedDict, total=False):
    """What `get_with_cache_aside` takes by name, beside its functions; it is told there."""

    agent_id: Id | None
    conversation_id: Id | None
    collection_id: Id | None
    ctx: Context | None
    ttl: float | None
    raise_errors: bool


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


class Call(NamedTuple):
    """One call of `get_with_cache_aside`, as its caller made it."""

    data_type: str
    resource_id: Id
    tenant_id: Id | None
    fetch: SourceFunction | None
    generate: SourceFunction | None
    serializer: Callable[[Any], Any] | None
    deserializer: Callable[[Any], Any] | None
    ctx: Context | None
    ttl: float | None
    began_s: float
    """When it was made, on the cache's clock."""
    raise_errors: bool


class Aside:
    """One call on its way."""

    __slots__ = ("_call", "_clock", "_key", "_parts", "_rules")

    def __init__(self, parts: Parts, key: Key, call: Call) -> None:
        self._parts, self._key, self._call = parts, key, call
        self._rules = parts.policies.rules(key.family.data_type)
        self._clock = parts.node.clock

    async def run(self) -> tuple[Any, Metrics]:
        """Look, load, and say how it went. Raises only for bad input, or with `raise_errors` what leaves no value."""
        call = self._call
        around = call.ctx if call.ctx is not None else context.current()
        ttl_s = checked_ttl(call.ttl)
        tenant = self._key.family.tenant or None if call.tenant_id is None else call.tenant_id
        given: tuple[tuple[Origin, SourceFunction | None], ...] = (
            ("database", call.fetch),
            ("generation", call.generate),
        )
        sources = [
            (name, bind(function, call.resource_id, tenant, around)) for name, function in given if function is not None
        ]
        request = Request(
            self._key,
            lambda previous: self._load(sources, previous),
            self._rules,
            search=True,
            ttl_s=ttl_s,
            tags=tag_scopes(self._key, (), self._rules),
            sources=len(sources) or 1,
            takes_previous=any(isinstance(bound, WithPrevious) for _, bound in sources),
        )
        found, error = await self._found(request)
        value, refused = found.value, found.loaded is not None and found.loaded.refused is not None
        if value is not None and call.deserializer is not None and not refused:
            value, error = _deserialized(call.deserializer, value)
        if error is not None and call.raise_errors:
            raise error
        if error is not None:
            logger.warning(
                'get_with_cache_aside gives None for a {}: {} is in metrics["error"]; raise_errors=True raises it',
                call.data_type,
                type(error).__name__,
            )
        metrics = self._metrics(found, error, (self._clock() - call.began_s) * 1000.0)
        if around is not None:
            around.add_metric("cache_hit", metrics["cache_hit"])
        return value, metrics

    async def _found(self, request: Request) -> tuple[Found, BaseException | None]:
        """What the read path gives, or nothing and what it has raised."""
        try:
            return await self._parts.loads.get_or_load(request), None
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 (bad input has been refused before: this is the source's, or L2's)
            return Found(None, None), error

    # -- the sources ----------------------------------------------------------------------------------------------

    async def _load(
        self,
        sources: Sequence[tuple[Origin, Bound]],
        previous: Previous[Any] | None = None,
        failed: Exception | None = None,
        failed_ms: float = 0.0,
    ) -> Loaded:
        """Database, then generation; `Failing` where what is generated would hide that the database has `failed`."""
        loaded, took_ms = Loaded(None), {"database": failed_ms, "generation": 0.0}
        previous = self._deserialized(previous)
        source: Origin = "database"
        for i, (name, bound) in enumerate(sources):
            began_s = self._clock()
            try:
                loaded = loaded_of(await call_by(self._rules, bound, previous))
            except ConfigError:
                raise  # a function that can't be used: what is generated in its place would hide that
            except Exception as error:
                if i + 1 == len(sources):
                    raise
                ms = (self._clock() - began_s) * 1000.0
                raise Failing(error, partial(self._load, sources[i + 1 :], None, error, ms)) from error
            source, took_ms[name] = name, (self._clock() - began_s) * 1000.0
            if loaded.value is not None or loaded.is_not_modified or i + 1 == len(sources):
                break
            leave_if_cancelled()
        if loaded.value is None and failed is not None:
            raise Failing(failed, partial(self._load, (), None, failed))  # nobody says that there is nothing
        value, refused = self._serialized(loaded.value)
        took = took_ms["database"], took_ms["generation"]
        return Loaded(value, source, *took, error=failed, refused=refused, decided=loaded.decided)

    def _deserialized(self, previous: Previous[Any] | None) -> Previous[Any] | None:
        """What is still cached, as the functions know it; None where the deserializer does not take it."""
        deserializer = self._call.deserializer
        if previous is None or deserializer is None:
            return previous
        value, error = _deserialized(deserializer, previous.value)
        return replace(previous, value=value) if error is None else None

    def _serialized(self, value: Any) -> tuple[Any, Exception | None]:
        """What the serializer makes of a value; or the value as it is, and why it is not to be cached."""
        serializer = self._call.serializer
        if value is None or serializer is None:
            return value, None
        try:
            return shareable(serializer(value), serializer), None
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 (a caller's function may raise anything: it is reported)
            return value, error

    # -- how it went ----------------------------------------------------------------------------------------------

    def _metrics(self, found: Found, error: BaseException | None, took_ms: float) -> Metrics:
        metrics = TEMPLATE.copy()
        loaded = found.loaded
        hit = found.level is not None and not found.is_fallback
        metrics["data_type"], metrics["resource_id"] = self._call.data_type, self._call.resource_id
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
        elif found.is_fallback:
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
