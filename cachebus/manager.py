"""The process-wide cache: `configure`, `lifespan`, and `CacheManager`, whose verbs are those of the open cache."""

from __future__ import annotations

import gc
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, Unpack, cast, overload
from weakref import WeakKeyDictionary, WeakSet

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.clock import Clock, monotonic
from cachebus.base.definition import Definition
from cachebus.base.ids import Id
from cachebus.base.lifetimes import TTL_PERMANENT
from cachebus.base.weak import now_in
from cachebus.cache import Cache
from cachebus.cascade import Cascade, CascadeTable
from cachebus.errors import ConfigError
from cachebus.handle import TypedCache, handled
from cachebus.policy import TTL_EXTENDED, TTL_SHORT, TTL_STANDARD
from cachebus.settings import Settings, SettingsOptions, with_options
from cachebus.values.results import Asked, one_model
from cachebus.writing.guard import WriteGuard

T = TypeVar("T")

_REMEDY = (
    "no cache is open in this process: call `configure(settings)` at import time, and run inside "
    "`async with lifespan():` (or `async with lifespan(settings):` alone)"
)
_OPEN_ALREADY = "the process-wide cache is open already"
_SAME = (
    "get get_many get_targets get_or_load get_or_load_many look set set_many delete invalidate invalidate_many "
    "invalidate_scope invalidate_tags invalidate_type clear"
)
"""Verbs that are called as in a cache."""
_VERBS = {verb: verb for verb in _SAME.split()} | {"set_if_not_exists": "add"}


class _Closed:
    """In place of a cache while none is open: it has the same verbs. Whoever keeps one calls what is open by then, and
    it raises where nothing is."""

    def __getattr__(self, name: str) -> Any:
        verb = getattr(Cache, name)
        signature = inspect.signature(verb)

        async def closed(*args: Any, **kwargs: Any) -> Any:
            return await getattr(current_cache(), name)(*args, **kwargs)

        closed.__name__, closed.__doc__ = name, verb.__doc__
        closed.__dict__["__signature__"] = signature.replace(parameters=list(signature.parameters.values())[1:])
        return closed


_CLOSED = cast("Cache", _Closed())


class _Current:
    """The verbs of whichever cache is open when one is called."""

    def __getattr__(self, name: str) -> Any:
        return getattr(current_cache(), name)


_CURRENT = _Current()

Application = Callable[..., Awaitable[None]]
"""What speaks ASGI: FastAPI's and Starlette's applications are called so."""


class Unsettled(Protocol):
    """A function of `@cached` of which nobody knows yet as what its results are to come."""

    def settle(self) -> None:
        """Find it out, and tell; `ConfigError`."""


@dataclass(frozen=True)
class Override:
    """What tests put in place of settings."""

    options: SettingsOptions
    clock: Clock | None

    def over(self, settings: Settings) -> Settings:
        """These settings, with the fields that are overridden; policies by their types. `ConfigError`."""
        policies = {**settings.policies, **self.options.get("policies", {})}
        return settings.model_copy(update={**self.options, "policies": policies})


def write_guard(
    targets: Sequence[Sequence[Any]] = (),
    tenant_id: Id | None = None,
    *,
    scopes: Sequence[str | Mapping[str, Any]] = (),
    tags: Sequence[str] = (),
    contexts: ContextMatch = "exact",
    timeout_s: float | None = None,
    db_timeout_s: float | None = None,
    wait: Wait | None = None,
    reason: str | None = None,
) -> WriteGuard:
    """Guard a database's write in the process-wide cache; parameters, result and errors are `Cache.write_guard`'s."""
    return current_cache().write_guard(
        targets,
        tenant_id,
        scopes=scopes,
        tags=tags,
        contexts=contexts,
        timeout_s=timeout_s,
        db_timeout_s=db_timeout_s,
        wait=wait,
        reason=reason,
    )


class CacheManager:
    """The verbs of the process-wide cache. Nothing is made of it: `await CacheManager.get("config", "x", "acme")`.

    Each verb is the open cache's own bound method, so that a hit costs no more than there: parameters, results and
    errors are those of `Cache`, where `set_if_not_exists` is called `add`. The `ttl_*` are lifetimes in seconds. While
    no cache is open each verb raises `ConfigError`, which says what to do. A verb that was looked up then, as at import
    time, calls whichever cache is open when it is called; one that was looked up since is that cache's.
    """

    ttl_short: ClassVar[float] = TTL_SHORT
    ttl_standard: ClassVar[float] = TTL_STANDARD
    ttl_extended: ClassVar[float] = TTL_EXTENDED
    ttl_permanent: ClassVar[float] = TTL_PERMANENT

    # Type checkers take these for what a cache has: its own signatures, so that nothing is said twice.
    get = _CLOSED.get
    get_many = _CLOSED.get_many
    get_targets = _CLOSED.get_targets
    get_or_load = _CLOSED.get_or_load
    look = _CLOSED.look
    get_or_load_many = _CLOSED.get_or_load_many
    set = _CLOSED.set
    set_many = _CLOSED.set_many
    delete = _CLOSED.delete
    invalidate = _CLOSED.invalidate
    invalidate_many = _CLOSED.invalidate_many
    invalidate_scope = _CLOSED.invalidate_scope
    invalidate_tags = _CLOSED.invalidate_tags
    invalidate_type = _CLOSED.invalidate_type
    clear = _CLOSED.clear
    set_if_not_exists = _CLOSED.add
    write_guard = staticmethod(write_guard)

    _configured: ClassVar[Settings | None] = None
    _override: ClassVar[Override | None] = None
    _cascades: ClassVar[list[Cascade]] = []
    _models: ClassVar[dict[str, Asked]] = {}
    """By data type: what the functions of `@cached` return, and the first of them."""
    _names: ClassVar[WeakKeyDictionary[Any, dict[tuple[str, str], Definition]]] = WeakKeyDictionary()
    """Of functions of `@cached` whose results are cached by their name, with their data type. By the cache that they
    were given, or by this class."""
    _handles: ClassVar[WeakSet[TypedCache[Any]]] = WeakSet()
    """Told at each opening and closing in whose memory to look."""
    _unsettled: ClassVar[WeakSet[Unsettled]] = WeakSet()
    """Asked at each opening. Weakly, since functions that are made by others come and go."""
    _cache: ClassVar[Cache | None] = None
    _opener: ClassVar[str] = ""
    """Who has opened it, and what helps who would, too; "" where a caller did, who knows."""

    @classmethod
    def _settle_later(cls, unsettled: Unsettled) -> None:
        """Ask it whenever a cache is opened here."""
        cls._unsettled.add(unsettled)

    @classmethod
    def _claim(cls, data_type: str, one: Definition, cache: object | None) -> None:
        """Have a name of results be this function's, or this class's, in the cache, None for the process-wide one;
        `ConfigError` where it is another one's, there or in a cache that has its values in the same place."""
        holder = CacheManager if cache is None else cache
        for each, names in list(cls._names.items()):
            known = names.get((data_type, one.name), one)
            is_shared = each is holder or _is_one_place(cls._settings_of(each), cls._settings_of(holder))
            if is_shared and not known.is_of(one):
                raise ConfigError(
                    f"{one} and {known} would share results, cached by {one.name!r} under one data type, "
                    f"{data_type!r}: give one of them a resource_id, another name, or another type"
                )
        cls._names.setdefault(holder, {}).setdefault((data_type, one.name), one)

    @classmethod
    def _claim_anew(cls) -> None:
        """Claim all again, now that it is known where the process-wide cache has its values; `ConfigError`."""
        for (data_type, _), one in list(cls._names.get(CacheManager, {}).items()):
            cls._claim(data_type, one, None)

    @classmethod
    def _settings_of(cls, holder: Any) -> Settings | None:
        return cls._configured if holder is CacheManager else holder.settings

    @overload
    @classmethod
    def of(
        cls, data_type: str, *, model: type[T], tags: Sequence[str] = (), ttl: float | None = None
    ) -> TypedCache[T]: ...
    @overload
    @classmethod
    def of(
        cls, data_type: str, *, model: Any = None, tags: Sequence[str] = (), ttl: float | None = None
    ) -> TypedCache[Any]: ...
    @classmethod
    def of(
        cls, data_type: str, *, model: Any = None, tags: Sequence[str] = (), ttl: float | None = None
    ) -> TypedCache[Any]:
        """As `Cache.of`, for the process-wide cache that is open when a verb of the handle is called; at import time,
        too."""
        handle = handled(_CURRENT, cls.decode_into, data_type, model, (tags, ttl))
        handle.join(cls._handles, cls._cache)
        return handle

    @classmethod
    def decode_into(cls, data_type: str, model: Any, asker: Definition) -> None:
        """As `Cache.decode_into`, for every cache that is opened here."""
        asked = one_model(cls._models.get(data_type), data_type, model, asker)
        if cls._cache is not None:
            cls._cache.decode_into(data_type, model, asker)
        cls._models[data_type] = asked

    @classmethod
    def _configure(cls, settings: Settings | None) -> None:
        cls._configured = settings

    @classmethod
    def _install(cls, cache: Cache | None) -> None:
        """Have the verbs be this cache's; with None they raise."""
        cls._cache = cache
        for handle in now_in(cls._handles):
            handle.look_in(cache)
        for verb, method in _VERBS.items():
            # staticmethod: what is assigned is bound already, and must not be bound again
            setattr(cls, verb, staticmethod(getattr(_CLOSED if cache is None else cache, method)))

    @classmethod
    def _uninstall(cls, cache: Cache) -> None:
        if cls._cache is cache:  # it was opened
            cls._install(None)
            cls._opener = ""


def _is_one_place(one: Settings | None, other: Settings | None) -> bool:
    """Whether caches of these settings share their values; False where it isn't known yet."""
    if one is None or other is None or one.url.get_secret_value() == "memory://":
        return False
    return one.url == other.url and one.namespace == other.namespace


def configure(settings: Settings | str | None = None) -> Settings:
    """Say how the process-wide cache is to be opened. It is not opened by that: see `lifespan`.

    - `settings`: settings, or a URL; None takes them from the environment (`CACHEBUS_*`)

    Returns the settings. Raises `ConfigError` for what is wrong with them, and for others than those that are
    configured already; the same again are harmless.
    """
    wanted = Settings.of(settings)
    present, override = CacheManager._configured, CacheManager._override
    if present is not None and present != wanted and override is None:
        differing = [name for name in Settings.model_fields if getattr(present, name) != getattr(wanted, name)]
        raise ConfigError(
            f"configured already for {present.safe_url}, and now for {wanted.safe_url} with another "
            f"{', '.join(differing)}: configure once"
        )
    CacheManager._configure(wanted)
    return wanted if override is None else override.over(wanted)


@contextmanager
def override_settings(*, clock: Clock | None = None, **options: Unpack[SettingsOptions]) -> Iterator[None]:
    """For tests: whatever `configure` and `lifespan` are told, a process-wide cache that is opened in the block has
    these fields of `Settings` in place of its own: `with override_settings(url="memory://"):`.

    - `clock`: of the cache, as a `FakeClock`; None is the machine's
    - `policies`: take the place of those of the same types

    In the block `configure` may be called again, with anything. Behind it all is as before: what was configured and
    declared, and which models functions of `@cached` have asked for. So import the modules that do this before the
    block, as at the top of a file of tests. Raises `ConfigError` where the process-wide cache is open; `lifespan` does
    for fields that don't fit.
    """
    manager = CacheManager
    if manager._cache is not None:
        raise ConfigError(f"{_OPEN_ALREADY}{manager._opener}: override its settings before it is opened")
    configured, outer = manager._configured, manager._override
    cascades, models, unsettled = list(manager._cascades), dict(manager._models), WeakSet(manager._unsettled)
    names = WeakKeyDictionary({holder: dict(each) for holder, each in manager._names.items()})
    if outer is not None:
        options = with_options(outer.options, options)
        clock = outer.clock if clock is None else clock
    manager._override = Override(options, clock)
    try:
        yield
    finally:
        manager._configured, manager._override = configured, outer
        manager._cascades[:] = cascades
        manager._models.clear()
        manager._models.update(models)
        manager._unsettled, manager._names = unsettled, names


def declare(*cascades: Cascade) -> None:
    """Declare cascades of the process-wide cache, before or after it is opened. Raises `ConfigError` for a cycle."""
    CascadeTable([*CacheManager._cascades, *cascades])  # raises before anything is kept
    CacheManager._cascades.extend(cascades)
    if CacheManager._cache is not None:
        CacheManager._cache.register(*cascades)


@overload
def lifespan(settings: Settings | str | None = None) -> AbstractAsyncContextManager[Cache]: ...
@overload
def lifespan(settings: Application) -> AbstractAsyncContextManager[dict[str, Cache]]: ...
@overload
def lifespan(
    settings: Settings | str | None, application: Application
) -> AbstractAsyncContextManager[dict[str, Cache]]: ...
def lifespan(
    settings: Settings | str | Application | None = None, application: Application | None = None
) -> AbstractAsyncContextManager[Cache] | AbstractAsyncContextManager[dict[str, Cache]]:
    """Open the process-wide cache for as long as the block runs.

    - `settings`: settings, or a URL; None is what `configure` was told, else the environment. Or an application of
      FastAPI or Starlette, so that `FastAPI(lifespan=lifespan)` works: the cache is then what `configure` was told
    - `application`: the same behind settings, for `FastAPI(lifespan=partial(lifespan, settings))`

    Gives the cache; to an application `{"cache": cache}`, as it keeps state: `request.state.cache`. Raises
    `ConfigError` where one is open already, and what entering `Cache.open(...)` does.
    """
    if callable(settings):
        return _opened_for_application(None)
    own = None if settings is None else Settings.of(settings)
    return _opened(own) if application is None else _opened_for_application(own)


@asynccontextmanager
async def _opened_for_application(own: Settings | None) -> AsyncIterator[dict[str, Cache]]:
    async with _opened(own) as cache:
        yield {"cache": cache}


@asynccontextmanager
async def _opened(own: Settings | None) -> AsyncIterator[Cache]:
    configured_here = CacheManager._configured is None
    wanted = configure(own) if own is not None or configured_here else CacheManager._configured
    if CacheManager._cache is not None:
        raise ConfigError(f"{_OPEN_ALREADY}{CacheManager._opener}; `current_cache()` is the open one")
    cache = _made(Settings.of(wanted))
    try:
        cache.register(*CacheManager._cascades)
        CacheManager._claim_anew()
        _settle()
        for data_type, (model, asker) in CacheManager._models.items():
            cache.decode_into(data_type, model, asker)
        async with cache:
            CacheManager._install(cache)
            yield cache
    finally:
        CacheManager._uninstall(cache)  # not before it is closed: loads that are under way may use it until then
        if configured_here:
            CacheManager._configure(None)


def _settle() -> None:
    """Ask all functions of which nobody knows yet as what their results come; `ConfigError`."""
    with suppress(ConfigError):
        _ask_unsettled()
        return
    gc.collect()  # a class that is gone holds itself until then, and its functions
    _ask_unsettled()


def _ask_unsettled() -> None:
    for unsettled in now_in(CacheManager._unsettled):
        unsettled.settle()


def _made(settings: Settings) -> Cache:
    override = CacheManager._override
    if override is None:
        return Cache.open(settings)
    return Cache(override.over(settings), clock=override.clock or monotonic)


def current_cache() -> Cache:
    """Returns the process-wide cache that is open now. Raises `ConfigError` with the remedy when there is none."""
    cache = CacheManager._cache
    if cache is None:
        raise ConfigError(_REMEDY)
    return cache
