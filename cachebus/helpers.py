"""The function API that services call: cache-aside, coordinated invalidation, counters, hashing, serialization."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from cachebus import context, values
from cachebus.aside import TEMPLATE, Aside, Metrics
from cachebus.base.hashing import generate_resource_id_hash  # noqa: F401 (services import it from here)
from cachebus.base.ids import Id, check_part
from cachebus.base.parameters import Source, check_async, name_of
from cachebus.cache import Cache
from cachebus.context import Context
from cachebus.errors import L2Unavailable
from cachebus.keys.naming import ArgumentTemplate
from cachebus.keys.plan import coordinated, target
from cachebus.manager import CacheManager, current_cache
from cachebus.reading.source import awaited
from cachebus.receipt import Receipt
from cachebus.wire.packing import carried

P = ParamSpec("P")
T = TypeVar("T")


async def get_with_cache_aside(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    fetch_from_db_func: Source | None = None,
    generate_func: Source | None = None,
    # By name from here on. Not made keyword-only: those have their defaults looked up one by one, at every hit.
    agent_id: Id | None = None,
    conversation_id: Id | None = None,
    collection_id: Id | None = None,
    ctx: Context | None = None,
    ttl: float | None = None,
    serializer: Callable[[Any], Any] | None = None,
    deserializer: Callable[[Any], Any] | None = None,
) -> tuple[Any, Metrics]:
    """The cached value, else the database's, else a generated one, stored by the type's TTL: `(value | None, metrics)`.

    Functions, sync or async, get what they take of `resource_id`, `tenant_id` and `ctx`; see `Cache.get_or_load`. One
    that fails after its type's retries is logged and counted, never cached as "absent". Without a value to serve, be it
    expired, generation is then tried; what it makes is kept for `fail_safe_throttle_s` at most. If nothing came for an
    error, the value is None, `metrics["source"]` "error" and `metrics["error"]` the exception.

    `metrics`: `source` ("cache", "database", "generation", "stale", "not_found", "error"), `level` ("l1", "l2", None),
    `cache_hit`, the times in milliseconds (`cache_check_time_ms`, `db_check_time_ms`, `generation_time_ms`,
    `total_time_ms`, `latency_ms`), `data_type`, `resource_id`, `serialization_error`, `error`. With context ids given,
    the wider contexts are searched too. `serializer` is applied before a value is stored, `deserializer` to what is
    read. Raises only for bad input: `InvalidKey`, `TenantRequired`, `ValueError` (ttl), and `ConfigError`, also for
    functions that can't be used.
    """
    cache = CacheManager._cache or current_cache()
    clock = cache._clock
    started = clock()
    # As in `Cache.get`.
    name = ""
    if (
        ((type(tenant_id) is str and tenant_id != "") or type(tenant_id) is int)
        and type(data_type) is str
        and (type(resource_id) is str or type(resource_id) is int)
    ):
        try:
            if agent_id is None and conversation_id is None and collection_id is None:
                name = f"{tenant_id}\x1f{data_type}\x1f{resource_id}\x1e\x1e\x1e"
            elif (
                (agent_id is None or type(agent_id) is str or type(agent_id) is int)
                and (conversation_id is None or type(conversation_id) is str or type(conversation_id) is int)
                and (collection_id is None or type(collection_id) is str or type(collection_id) is int)
            ):
                a = "\x1e" if agent_id is None else f"\x1f{agent_id}"
                c = "\x1e" if conversation_id is None else f"\x1f{conversation_id}"
                o = "\x1e" if collection_id is None else f"\x1f{collection_id}"
                name = f"{tenant_id}\x1f{data_type}\x1f{resource_id}{a}{c}{o}"
        except ValueError:
            name = ""  # an int of more digits than Python writes: no id
    entry = cache._entries.get(name)
    if entry is not None and deserializer is None:
        group = entry.group
        if started < entry.fast_until and started < group.valid_until:
            group.hits += 1
            if entry.freq < 3:
                entry.freq += 1
            metrics = TEMPLATE.copy()
            metrics["data_type"] = data_type
            metrics["resource_id"] = resource_id
            took = (clock() - started) * 1000.0
            metrics["cache_check_time_ms"] = metrics["total_time_ms"] = metrics["latency_ms"] = took
            if (around := ctx or context.current()) is not None:
                around.add_metric("cache_hit", True)
            return entry.value, metrics
    tenant_id = ctx.tenant_id if tenant_id is None and ctx is not None else tenant_id
    key = cache._live().naming.key(
        data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id, name=name
    )
    aside = Aside(cache, key, data_type, resource_id, fetch_from_db_func, generate_func, serializer)
    return await aside.run(ctx, ttl, deserializer, started)


# -- invalidation ----------------------------------------------------------------------------------------


class Counts(dict[str, int]):
    """How many targets were addressed, by data type; `receipt` is the session token."""

    receipt: Receipt


async def invalidate_coordinated(
    tenant_id: Id,
    primary_data_type: str,
    primary_resource_id: Id,
    related_invalidations: Sequence[Mapping[str, Any]] | None = None,
    agent_id: Id | None = None,
    conversation_id: Id | None = None,
    collection_id: Id | None = None,
    *,
    wait: str | None = None,
) -> Counts:
    """Replace a resource and what depends on it, in one atomic step; returns `{data_type: targets}` with `.receipt`.

    `related_invalidations`: mappings of `data_type`, `resource_id` ("*" = the whole scope) and optional context ids,
    which are inherited from the call where they are not given. Declared cascades are followed. Where a target has no
    context ids at all, its id is meant in every context. `wait="nodes"`: see `Cache.invalidate`.
    """
    cache = current_cache()
    around = (agent_id, conversation_id, collection_id)
    primary = target(primary_data_type, primary_resource_id, around)
    targets = coordinated(primary, related_invalidations or (), around)
    receipt = await cache.invalidate_targets(targets, tenant_id, all_contexts=True, wait=wait)
    counts = Counts(receipt.targets)
    counts.receipt = receipt
    return counts


async def invalidate_resource_cache(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    agent_id: Id | None = None,
    conversation_id: Id | None = None,
    collection_id: Id | None = None,
    *,
    wait: str | None = None,
) -> bool:
    """Replace one resource: in the given contexts, or in all where none are given. True; False while it
    is pending (see `Settings.pending_max`); or `InvalidationFailed`."""
    one = target(data_type, resource_id, (agent_id, conversation_id, collection_id))
    receipt = await current_cache().invalidate_targets([one], tenant_id, all_contexts=True, wait=wait)
    return receipt.status != "pending"


# -- counters --------------------------------------------------------------------------------------------


async def increment_counter(
    counter_type: str,
    tenant_id: Id | None = None,
    value: int = 1,
    resource_id: Id | None = None,
    agent_id: Id | None = None,
    conversation_id: Id | None = None,
    collection_id: Id | None = None,
    *,
    expires_in_s: float | None = None,
    request_id: Id | None = None,
) -> int:
    """Add to a shared counter and give its new value; see `Cache.increment`."""
    return await current_cache().increment(
        counter_type,
        tenant_id,
        value,
        resource_id,
        agent_id,
        conversation_id,
        collection_id,
        expires_in_s=expires_in_s,
        request_id=request_id,
    )


async def get_counter(
    counter_type: str,
    tenant_id: Id | None = None,
    resource_id: Id | None = None,
    agent_id: Id | None = None,
    conversation_id: Id | None = None,
    collection_id: Id | None = None,
) -> int:
    """The value of a shared counter, 0 when there is none."""
    return await current_cache().increment(
        counter_type, tenant_id, 0, resource_id, agent_id, conversation_id, collection_id
    )


# -- odds and ends ---------------------------------------------------------------------------------------


def serialize_for_cache(value: Any, data_type: str) -> bytes:
    """The value as the type's codec stores it: one byte of codec, then the payload; `NotSerializable`,
    `ValueTooLarge`."""
    codec, payload, _ = carried(value, current_cache().rules(data_type))
    return bytes([codec]) + payload


def deserialize_from_cache(data: bytes, data_type: str) -> Any:
    """The value in bytes of `serialize_for_cache`; `ValueError` for any others."""
    if not data:
        raise ValueError("no bytes to deserialize")
    return values.decode(data[0], data[1:], current_cache().rules(data_type).model)


async def track_cache_metrics(
    data_type: str, tenant_id: Id, metric_type: str, value: float = 1, metadata: Mapping[str, Any] | None = None
) -> None:
    """Count something of your own beside the cache's figures: a shared counter `metric_type` of the data type.

    `value` is rounded to an int. `metadata` goes to the surrounding `Context`, if there is one. Never fails a request:
    without L2 it is not counted.
    """
    around = context.current()
    data_type, metric_type = check_part("data_type", data_type), check_part("metric_type", metric_type)
    if around is not None:
        around.add_metric(f"{data_type}.{metric_type}", value if metadata is None else {"value": value, **metadata})
    try:
        await current_cache().increment(f"metric_{metric_type}", tenant_id, round(value), data_type)
    except L2Unavailable:
        return  # counted as l2_errors by the cache


def cached(
    data_type: str,
    *,
    resource_id: str,
    tenant_id: str | None = None,
    agent_id: str | None = None,
    conversation_id: str | None = None,
    collection_id: str | None = None,
    ttl: float | None = None,
    tags: Sequence[str] = (),
    cache: Cache | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Cache an async function's results: `@cached("agent_config", resource_id="{agent_id}", tenant_id="{tenant_id}")`.

    The ids are templates over the function's arguments, escaped where they have several (see `Template`); one that is
    an argument alone, and that is None, is not given. The process-wide cache is found when the function is called,
    unless `cache` is given. `ConfigError` for a template of what is no argument, or that is none; for a sync function,
    for a generator, async or not, and for a result that is an iterator.
    """
    templates = {
        "resource_id": resource_id,
        "tenant_id": tenant_id,
        "agent_id": agent_id,
        "conversation_id": conversation_id,
        "collection_id": collection_id,
    }

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        check_async(function)
        signature = inspect.signature(function)
        rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
        known = None if rest else signature.parameters
        ids_of = {n: ArgumentTemplate(t, known, name_of(function)) for n, t in templates.items() if t is not None}

        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = {**bound.arguments.get(rest or "", {}), **bound.arguments}
            ids = {name: template.filled_in(arguments) for name, template in ids_of.items()}
            using = current_cache() if cache is None else cache

            async def load() -> T:
                result: T = await awaited(function(*args, **kwargs), function)
                return result

            result: T = await using.get_or_load(data_type, loader=load, ttl=ttl, tags=tags, **ids)
            return result

        return wrapper

    return decorate
