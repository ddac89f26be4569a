"""What the backends of one entry of `CACHES` share, in all threads of the process: the entry understood, and the cache
that is open for it. Entries with equal settings share the cache too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db import connections

from cachebus.base import home
from cachebus.base.ids import Id
from cachebus.cache import Cache
from cachebus.calls import set_request
from cachebus.cascade import Target
from cachebus.django.options import AliasOptions, understood
from cachebus.errors import ConfigError
from cachebus.threads import BlockingCache
from cachebus.writing.exchange import PresentValue

AT_ONCE = 250
"""So many targets are invalidated in one step: many more would hold up everybody else at the server."""
ENTRIES_MAX = 64
"""More than a project has, and fewer than a suite of tests makes up."""


class SharedCache:
    """An entry of `CACHES` in this process."""

    def __init__(self, location: object, given: Mapping[str, Any], options: AliasOptions, cache: BlockingCache) -> None:
        self._said = location, dict(given)
        self.options = options
        self.cache = cache

    def is_of(self, location: object, given: Mapping[str, Any]) -> bool:
        """Whether the entry says this."""
        return self._said == (location, given)

    def exchange(
        self, resource_id: str, tenant_id: Id, change: Callable[[PresentValue], PresentValue]
    ) -> PresentValue | None:
        """Store what `change` makes of a value in its place; None where there is none. See `writing/exchange.py`."""

        async def exchanged(cache: Cache) -> PresentValue | None:
            parts = cache._live()
            key = parts.naming.key(self.options.data_type, resource_id, tenant_id, None, None, None)
            request = set_request(parts, key, None, None, ())
            return await parts.writing.exchanger.exchange(request, change)

        return self.cache._ask(exchanged)

    def invalidate(self, targets: Sequence[Target], tenant_id: Id, reason: str | None = None) -> None:
        """Invalidate these, 250 in one step."""
        for begin in range(0, len(targets), AT_ONCE):
            self.cache.invalidate_targets(targets[begin : begin + AT_ONCE], tenant_id, reason=reason)


_entries: list[SharedCache] = []
_lock = threading.Lock()


def shared(location: object, given: Mapping[str, Any]) -> SharedCache:
    """What this entry's backends share; nothing is opened before it is used. `ConfigError`, also where an alias of the
    same cache and type has another policy."""
    found = _of(location, given)
    if found is not None:
        return found
    options = understood(location, given)
    with _lock:
        found = _of(location, given)
        if found is None:
            found = SharedCache(location, given, options, _cache_for(options))
            del _entries[:-ENTRIES_MAX]
            _entries.append(found)
        return found


def _of(location: object, given: Mapping[str, Any]) -> SharedCache | None:
    return next((entry for entry in _entries if entry.is_of(location, given)), None)


def _cache_for(options: AliasOptions) -> BlockingCache:
    beside = [entry for entry in _entries if entry.options.settings == options.settings]
    for entry in beside:
        if entry.options.data_type == options.data_type and entry.options.policy != options.policy:
            raise ConfigError(
                f"two entries of CACHES share the type {options.data_type!r}, and have another POLICY each"
            )
    cache = beside[0].cache if beside else BlockingCache.open(options.settings)
    cache.register(policies={options.data_type: options.policy})
    cache._run_apart = _apart
    return cache


def _apart(load: Callable[[], Any]) -> Any:
    """What a load gives in a thread of its own, whose connections of databases Django would leave open: no request ends
    there."""
    try:
        return load()
    finally:
        connections.close_all()


def close_caches() -> None:
    """Close all caches that Django's aliases have opened in this process, as for the end of a suite of tests; the
    process's exit does so by itself. What is used after that opens anew."""
    with _lock:
        closing, _entries[:] = {id(entry.cache): entry.cache for entry in _entries}, []
    for cache in closing.values():
        cache.close()


def _forked() -> None:
    global _lock
    _lock = threading.Lock()  # that of the parent may have been locked at that moment


home.in_each_child(_forked)
