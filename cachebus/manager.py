"""The process-wide cache: `configure`, `lifespan`, and `CacheManager`, whose verbs are those of the open cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, NoReturn

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id
from cachebus.cache import Cache
from cachebus.cascade import Cascade, CascadeTable
from cachebus.errors import ConfigError
from cachebus.policy import TTL_EXTENDED, TTL_PERMANENT, TTL_SHORT, TTL_STANDARD
from cachebus.settings import Settings
from cachebus.writing.guard import WriteGuard

_REMEDY = (
    "no cache is open in this process: call `configure(settings)` at import time, and run inside "
    "`async with lifespan():` (or `async with lifespan(settings):` alone)"
)
_VERBS = {
    "get": "get",
    "get_many": "get_many",
    "get_or_load": "get_or_load",
    "set": "set",
    "delete": "delete",
    "invalidate": "invalidate",
    "invalidate_scope": "invalidate_scope",
    "invalidate_tags": "invalidate_tags",
    "set_if_not_exists": "add",
}


async def _closed(*_args: object, **_kwargs: object) -> NoReturn:
    raise ConfigError(_REMEDY)


Verb = Callable[..., Awaitable[Any]]


class CacheManager:
    """The verbs of the process-wide cache: the open cache's own bound methods, so that a hit costs no more than there.

    `get(data_type, resource_id, tenant_id=None, agent_id=None, conversation_id=None, collection_id=None,
    search_hierarchy=False, use_memory=True)`; `delete` and `invalidate` take the same ids; `set(data_type, resource_id,
    value, tenant_id=None, ..., ttl=None)`; `set_if_not_exists(data_type, resource_id, value, ttl=None, tenant_id=None,
    ...) -> bool`. Before a cache is open each raises `ConfigError` that says what to do.
    """

    ttl_short: ClassVar[float] = TTL_SHORT
    ttl_standard: ClassVar[float] = TTL_STANDARD
    ttl_extended: ClassVar[float] = TTL_EXTENDED
    ttl_permanent: ClassVar[float] = TTL_PERMANENT

    get: ClassVar[Verb] = _closed
    get_many: ClassVar[Verb] = _closed
    get_or_load: ClassVar[Verb] = _closed
    set: ClassVar[Verb] = _closed
    delete: ClassVar[Verb] = _closed
    invalidate: ClassVar[Verb] = _closed
    invalidate_scope: ClassVar[Verb] = _closed
    invalidate_tags: ClassVar[Verb] = _closed
    set_if_not_exists: ClassVar[Verb] = _closed

    write_guard: ClassVar[Callable[..., WriteGuard]]

    _configured: ClassVar[Settings | None] = None
    _cascades: ClassVar[list[Cascade]] = []
    _cache: ClassVar[Cache | None] = None


def configure(settings: Settings | str | None = None) -> Settings:
    """Say how the process-wide cache is to be opened: settings, a URL, or nothing for `CACHEBUS_*`; `ConfigError`.

    The same settings again are harmless; others, once configured, raise.
    """
    wanted = Settings.of(settings)
    present = CacheManager._configured
    if present is not None and present != wanted:
        differing = [name for name in Settings.model_fields if getattr(present, name) != getattr(wanted, name)]
        raise ConfigError(
            f"configured already for {present.safe_url}, and now for {wanted.safe_url} with another "
            f"{', '.join(differing)}: configure once"
        )
    CacheManager._configured = wanted
    return wanted


def declare(*cascades: Cascade) -> None:
    """Declare cascades of the process-wide cache, before or after it is opened; `ConfigError` for a cycle."""
    CascadeTable([*CacheManager._cascades, *cascades])  # raises before anything is kept
    CacheManager._cascades.extend(cascades)
    if CacheManager._cache is not None:
        CacheManager._cache.register(*cascades)


@asynccontextmanager
async def lifespan(settings: Settings | str | object | None = None) -> AsyncIterator[Cache]:
    """Open the process-wide cache for as long as the block runs.

    `async with lifespan("redis://..."):`, or after `configure(...)` without an argument. It also serves as the lifespan
    of a FastAPI or Starlette application: `FastAPI(lifespan=lifespan)`; the application object is then ignored.
    """
    own = settings if isinstance(settings, Settings | str) else None
    configured_here = CacheManager._configured is None
    wanted = configure(own) if own is not None or configured_here else CacheManager._configured
    if CacheManager._cache is not None:
        raise ConfigError("the process-wide cache is open already")
    cache = Cache.open(wanted)
    cache.register(*CacheManager._cascades)
    try:
        async with cache:
            _install(cache)
            yield cache
    finally:
        _uninstall(cache)  # not before it is closed: loads that are under way may use it until then
        if configured_here:
            CacheManager._configured = None


def _install(cache: Cache | None) -> None:
    CacheManager._cache = cache
    for verb, method in _VERBS.items():
        # staticmethod: what is assigned is bound already, and must not be bound again
        setattr(CacheManager, verb, staticmethod(_closed if cache is None else getattr(cache, method)))


def _uninstall(cache: Cache) -> None:
    if CacheManager._cache is cache:  # it was opened
        _install(None)


for _verb in _VERBS:
    setattr(CacheManager, _verb, staticmethod(_closed))


def current_cache() -> Cache:
    """The process-wide cache that is open now; `ConfigError` with the remedy when there is none."""
    cache = CacheManager._cache
    if cache is None:
        raise ConfigError(_REMEDY)
    return cache


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
) -> WriteGuard:
    """Guard a database's write in the process-wide cache; see `Cache.write_guard`."""
    return current_cache().write_guard(
        targets,
        tenant_id,
        scopes=scopes,
        tags=tags,
        contexts=contexts,
        timeout_s=timeout_s,
        db_timeout_s=db_timeout_s,
        wait=wait,
    )


CacheManager.write_guard = staticmethod(write_guard)
