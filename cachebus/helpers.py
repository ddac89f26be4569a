"""The function API that services call: cache-aside, coordinated invalidation, counters, hashing, serialization."""

from __future__ import annotations

from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never, Unpack, overload

from cachebus import context, values
from cachebus.aside import TEMPLATE, Aside, Call, Metrics, Options
from cachebus.base.choices import Wait
from cachebus.base.hashing import generate_resource_id_hash  # noqa: F401 (services import it from here)
from cachebus.base.ids import Id, check_part
from cachebus.base.parameters import SourceFunction
from cachebus.cache import Cache
from cachebus.context import Context
from cachebus.decided import Answer
from cachebus.declaration import CachedOptions, declaration_of
from cachebus.decorator import CachedFunction, ClassFunction, Decorator, StaticFunction
from cachebus.errors import L2Unavailable
from cachebus.keys.plan import coordinated, target
from cachebus.manager import CacheManager, current_cache
from cachebus.policy import Rules
from cachebus.receipt import Receipt
from cachebus.wire.packing import carried

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # What each function gives. Nothing, where there is none.
    F = TypeVar("F", default=Never)
    G = TypeVar("G", default=Never)


@overload
async def get_with_cache_aside(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    fetch_from_db_func: None = None,
    generate_func: None = None,
    **options: Unpack[Options],
) -> tuple[Any, Metrics]: ...
@overload
async def get_with_cache_aside(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    fetch_from_db_func: Callable[..., Awaitable[Answer[F]]] | None = None,
    generate_func: Callable[..., Awaitable[Answer[G]]] | None = None,
    **options: Unpack[Options],
) -> tuple[F | G | None, Metrics]: ...
@overload
async def get_with_cache_aside(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    fetch_from_db_func: Callable[..., Awaitable[Answer[F]]] | None = None,
    generate_func: Callable[..., Answer[G]] | None = None,
    **options: Unpack[Options],
) -> tuple[F | G | None, Metrics]: ...
@overload
async def get_with_cache_aside(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    fetch_from_db_func: Callable[..., Answer[F]] | None = None,
    generate_func: Callable[..., Awaitable[Answer[G]]] | None = None,
    **options: Unpack[Options],
) -> tuple[F | G | None, Metrics]: ...
@overload
async def get_with_cache_aside(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    fetch_from_db_func: Callable[..., Answer[F]] | None = None,
    generate_func: Callable[..., Answer[G]] | None = None,
    **options: Unpack[Options],
) -> tuple[F | G | None, Metrics]: ...
@overload
async def get_with_cache_aside(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    fetch_from_db_func: SourceFunction | None = None,
    generate_func: SourceFunction | None = None,
    *,
    serializer: Callable[[Any], Any] | None = None,
    deserializer: Callable[[Any], Any] | None = None,
    **options: Unpack[Options],
) -> tuple[Any, Metrics]: ...
async def get_with_cache_aside(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    fetch_from_db_func: SourceFunction | None = None,
    generate_func: SourceFunction | None = None,
    # By name from here on. Not made keyword-only: those have their defaults looked up one by one, at every hit.
    agent_id: Id | None = None,
    conversation_id: Id | None = None,
    collection_id: Id | None = None,
    ctx: Context | None = None,
    ttl: float | None = None,
    serializer: Callable[[Any], Any] | None = None,
    deserializer: Callable[[Any], Any] | None = None,
    raise_errors: bool = False,
) -> tuple[Any, Metrics]:
    """Read a value of the process-wide cache, else take the database's, else a generated one, which is then stored.

    **What a function of yours raises is not raised here**, unless you say `raise_errors=True`: it is in
    `metrics["error"]`, and the value is None where nothing else could be served. So None alone does not mean that the
    database has nothing: look at `metrics["source"]`.

    - `fetch_from_db_func`, `generate_func`: functions, sync or async; they get what they take of `resource_id`,
      `tenant_id` and `ctx`, as the loader of `Cache.get_or_load` does. None from them means not found
    - `agent_id`, `conversation_id`, `collection_id`: the context; the wider ones are searched too
    - `ctx`: the request's `Context`; None is the surrounding one
    - `ttl`: seconds that a loaded value lives; None is the type's
    - `serializer`: applied before a value is stored; `deserializer`: to what is read
    - `raise_errors`: raise what would leave the call without a value. What is served all the same, an expired value or
      a generated one, is returned as ever, with the error in its metrics

    A function that fails after its type's retries is logged and counted, never cached as "absent". Without a value to
    serve, be it expired, generation is then tried; what it makes is kept for `fail_safe_throttle_s` at most.

    Returns the value, or None, and the metrics, a dict. The value has the type that the functions say, as in
    `Cache.get_or_load`; with a serializer or deserializer it may be anything. The metrics are `source` ("cache",
    "database", "generation", "stale", "not_found", "error"), `level` ("l1", "l2", None), `cache_hit`, the times in
    milliseconds (`cache_check_time_ms`, `db_check_time_ms`, `generation_time_ms`, `total_time_ms`, `latency_ms`),
    `data_type`, `resource_id`, `serialization_error`, and `error`, the exception. Raises only for
    bad input: `InvalidKey`, `TenantRequired`, `ValueError` (ttl), and `ConfigError`, also for functions that can't be
    used.
    """
    cache = CacheManager._cache or current_cache()
    clock, home = cache._clock, cache._loop
    now = clock()
    # hit: name
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
    # hit: end
    entry = cache._entries.get(name)
    if entry is not None and deserializer is None:
        # hit: serve
        group = entry.group
        if now < entry.fast_until_s and now < group.valid_until_s and running_loop() is home:
            group.hits += 1.0
            if entry.freq < 3:
                entry.freq += 1
            # hit: end
            metrics = TEMPLATE.copy()
            metrics["data_type"], metrics["resource_id"] = data_type, resource_id
            metrics["cache_check_time_ms"] = metrics["total_time_ms"] = metrics["latency_ms"] = (clock() - now) * 1000.0
            if (around := ctx or context.current()) is not None:
                around.add_metric("cache_hit", True)
            return entry.value, metrics
    functions = fetch_from_db_func, generate_func, serializer, deserializer
    call = Call(data_type, resource_id, tenant_id, *functions, ctx, ttl, now, raise_errors)
    return await _aside(cache, call, name, agent_id, conversation_id, collection_id).run()


def _aside(cache: Cache, call: Call, name: str, *contexts: Id | None) -> Aside:
    """The call, on a key that is checked; `name` is what the hit has looked for, "" where these are to be looked at."""
    parts = cache._live()
    tenant_id = call.ctx.tenant_id if call.tenant_id is None and call.ctx is not None else call.tenant_id
    return Aside(parts, parts.naming.key(call.data_type, call.resource_id, tenant_id, *contexts, name=name), call)


# -- invalidation ----------------------------------------------------------------------------------------


class Counts(dict[str, int]):
    """How many targets were addressed, by data type."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__(receipt.targets)
        self.receipt = receipt
        """The invalidation's receipt, which is the session token for it."""


async def invalidate_coordinated(
    tenant_id: Id,
    primary_data_type: str,
    primary_resource_id: Id,
    related_invalidations: Sequence[Mapping[str, Any]] | None = None,
    agent_id: Id | None = None,
    conversation_id: Id | None = None,
    collection_id: Id | None = None,
    *,
    wait: Wait | None = None,
    reason: str | None = None,
) -> Counts:
    """Invalidate a resource and what depends on it, in one atomic step. Declared cascades are followed.

    - `related_invalidations`: mappings of `data_type`, `resource_id` ("*": the whole scope) and context ids, which are
      inherited from the call where they are not given
    - the context ids: where a target has none at all, its id is meant in every context
    - `wait`, `reason`: as in `Cache.invalidate`

    Returns how many targets were addressed, by data type; its `receipt` is the invalidation's. Raises
    `InvalidationFailed`, `InvalidKey`, `TenantRequired`.
    """
    cache = current_cache()
    around = (agent_id, conversation_id, collection_id)
    primary = target(primary_data_type, primary_resource_id, around)
    targets = coordinated(primary, related_invalidations or (), around)
    receipt = await cache.invalidate_targets(targets, tenant_id, contexts="all", wait=wait, reason=reason)
    return Counts(receipt)


async def invalidate_resource_cache(
    data_type: str,
    resource_id: Id,
    tenant_id: Id | None = None,
    agent_id: Id | None = None,
    conversation_id: Id | None = None,
    collection_id: Id | None = None,
    *,
    wait: Wait | None = None,
    reason: str | None = None,
) -> bool:
    """Invalidate one resource: in the context given, or in every one where none is.

    - `wait`, `reason`: as in `Cache.invalidate`

    Returns True; False while it is pending (see `Settings.pending_max`), or where the cache is disabled. Raises
    `InvalidationFailed`, `InvalidKey`, `TenantRequired`.
    """
    one = target(data_type, resource_id, (agent_id, conversation_id, collection_id))
    receipt = await current_cache().invalidate_targets([one], tenant_id, contexts="all", wait=wait, reason=reason)
    return receipt.status == "applied"


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
    """Add to a shared counter; parameters, result and errors are those of `Cache.increment`."""
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
    """Read a shared counter. Returns its value, 0 when there is none; raises `L2Unavailable`."""
    return await current_cache().increment(
        counter_type, tenant_id, 0, resource_id, agent_id, conversation_id, collection_id
    )


# -- odds and ends ---------------------------------------------------------------------------------------


def serialize_for_cache(value: Any, data_type: str) -> bytes:
    """Encode a value by the policy of its type, as L2 stores it.
    Returns one byte that names the codec, then the payload. Raises `NotSerializable`, `ValueTooLarge`, `InvalidKey`.
    """
    codec, payload, _ = carried(value, _rules(data_type))
    return bytes([codec]) + payload


def deserialize_from_cache(data: bytes, data_type: str) -> Any:
    """Decode what `serialize_for_cache` gave. Returns the value; raises `ValueError` for any other bytes."""
    if not data:
        raise ValueError("no bytes to deserialize")
    rules = _rules(data_type)
    return values.decode(data[0], data[1:], rules.model, rules.form.own_type)


def _rules(data_type: str) -> Rules:
    return current_cache()._live().policies.rules(check_part("data_type", data_type))


async def track_cache_metrics(
    data_type: str, tenant_id: Id, metric_type: str, value: float = 1, metadata: Mapping[str, Any] | None = None
) -> None:
    """Count something of your own beside the cache's figures, in a shared counter. An outage of L2 fails no request: it
    is not counted then.

    - `data_type`, `metric_type`: what the counter is of, and its name
    - `value`: how much is added, rounded to an int
    - `metadata`: goes to the metrics of the surrounding `Context`, if there is one

    Raises `InvalidKey`.
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
    resource_id: str | None = None,
    tenant_id: str | None = None,
    agent_id: str | None = None,
    conversation_id: str | None = None,
    collection_id: str | None = None,
    ttl: float | None = None,
    tags: Sequence[str] = (),
    ignore: Sequence[str] = (),
    cache: Cache | None = None,
    after: str | Callable[[], Receipt | str | None] | None = None,
    wait: Wait | None = None,
    reason: str | None = None,
) -> Decorator:
    """Cache an async function's results: `@cached("agent_config", resource_id="{agent_id}", tenant_id="{tenant_id}")`.

    - the ids: templates over the function's arguments, escaped where they have several (see `Template`). One that is an
      argument alone, and that is None, is not given. `resource_id=None`: the function's name, with that of the class
      that a method is called on, and a hash of all arguments that are in no other template
    - `ttl`: seconds that a result lives; None is the type's
    - `tags`: of every result, beside those of the type; templates as well
    - `ignore`: arguments by which results do not differ. Each other one must be in a template, but for `self`. What a
      partial or a bound method has settled is an argument too, and so is the class of a class method
    - `cache`: None is the process-wide cache that is open when the function is called
    - `after`: the argument that holds a receipt, or its text, whose write the call must see: `after="{receipt}"`; None
      there is none. It tells no results apart. Or a function without arguments that gives it, as the `get` of a context
      variable
    - `wait`, `reason`: of `.invalidate` and `.refresh`; see `Cache.invalidate`

    A result comes as the function's annotation says: it is the data type's model where the policy has none. What it
    names may be defined later, until a cache is opened, or the function is called.

    Returns the decorator. What it makes is called as the function is, and has `.key`, `.get`, `.invalidate`,
    `.refresh` and `.with_options`; see `CachedFunction`. Methods are taken, too; on class and static ones it stands on
    top.

    Raises `ConfigError` for a template of what is no argument, or that is none; for an argument that is in no template;
    without `resource_id`, for a function that takes more from the one that makes it, and for another one's name;
    for a sync function, for a generator, async or not; where the annotation says what no value can be decoded into, or
    something else than the policy's model; where the cache is opened or the function called, and the annotation can't
    be read; and, when it is called, for a result that is an iterator.
    """
    templates = {
        "resource_id": resource_id,
        "tenant_id": tenant_id,
        "agent_id": agent_id,
        "conversation_id": conversation_id,
        "collection_id": collection_id,
    }

    options = CachedOptions(data_type, templates, tags, ttl, ignore, cache, False, after, wait, reason)

    def decorate(function: Any) -> Any:
        plain = function.__func__ if isinstance(function, staticmethod | classmethod) else function
        declared = declaration_of(plain, options, is_of_class=isinstance(function, classmethod))
        if isinstance(function, staticmethod):
            return StaticFunction(declared, plain)
        return ClassFunction(declared, plain) if isinstance(function, classmethod) else CachedFunction(declared, plain)

    return decorate
