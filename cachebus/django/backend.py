"""The cache backend: `CACHES = {"default": {"BACKEND": "cachebus.django.CacheBackend", "LOCATION": "redis://..."}}`.

Django makes a backend for each thread and each alias, so one holds nothing: what is open belongs to the process
(`shared.py`). What Django says of a key (prefix, version, key function) is a name; with the alias's type and the call's
tenant it is the id of a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from cachebus.base.ids import Id, check_part
from cachebus.base.lifetimes import TTL_MIN_S
from cachebus.cascade import Target
from cachebus.decided import DontCache, Fresh
from cachebus.django.awaited import AwaitedVerbs
from cachebus.django.shared import SharedCache, shared
from cachebus.django.values import REMOVED, UNREADABLE, decoded, encoded, encoded_answer
from cachebus.errors import CacheBusError, InvalidKey
from cachebus.threads import BlockingCache
from cachebus.writing.exchange import PresentValue

HASHED = "sha256:"


def resource_of(name: str) -> str:
    """The resource id of a key of Django's, which may hold anything: what is no id, or looks like a hash, is hashed."""
    try:
        if not name.startswith(HASHED) and name != "*":
            return check_part("key", name)
    except InvalidKey:
        pass
    return HASHED + sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


class _AlreadyRemoved(Exception):
    """A call of `delete` has taken the value, and is about to invalidate it."""


class CacheBackend(AwaitedVerbs, BaseCache):  # type: ignore[misc]
    """Django's cache interface over a coherent two-level cache: see `django.core.cache.backends.base.BaseCache`.

    - `LOCATION`: the URL, as `Settings.url`; "" leaves it to `CACHEBUS_URL`
    - `OPTIONS`: fields of `Settings` in small letters. In capitals: `DATA_TYPE` ("django"), the type of all values,
      by which aliases are told apart; `TENANT`, an id, or a function (or its dotted name) that gives the tenant of the
      call; `POLICY`, fields of the type's `Policy`; `SERIALIZER`, what has `dumps` and `loads`, in place of msgpack

    A timeout of 0 or less stores nothing, None is for ever. `delete` and `touch` say whether there was a value.
    They, `incr` and `decr` are atomic, and the last two keep the lifetime. `get_or_set` loads once over all nodes.
    The async twins are the same verbs, each on a thread. `close` does nothing: the cache is the process's, and closes
    with it.

    Raises `NotSerializable`, a `TypeError`, for values that can't be carried; `L2Unavailable`, a `ConnectionError`,
    where the server does not answer; `ConfigError` for options that are wrong; `TenantRequired` where there is no
    tenant.
    """

    def __init__(self, server: str, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self._shared = shared(server, params.get("OPTIONS", {}))
        self._type = self._shared.options.data_type

    @property
    def shared(self) -> SharedCache:
        """What all backends of this entry share."""
        return self._shared

    def resource_id(self, key: Any, version: int | None = None) -> str:
        """The id under which the key's value lies, for the cache's own verbs."""
        return resource_of(self.make_and_validate_key(key, version=version))

    def _where(self) -> tuple[BlockingCache, Id]:
        return self._shared.cache, self._shared.options.tenant_id()

    def get_backend_timeout(self, timeout: Any = DEFAULT_TIMEOUT) -> float | None:
        """Seconds to live; None where nothing is to be stored, infinity for ever."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        if timeout is None:
            return math.inf
        return max(float(timeout), TTL_MIN_S) if timeout > 0 else None

    # -- one value --------------------------------------------------------------------------------------------------

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """The value, or `default`; each caller's own to change."""
        resource_id = self.resource_id(key, version)
        cache, tenant_id = self._where()
        data = cache.get(self._type, resource_id, tenant_id)
        value = UNREADABLE if data is None else decoded(data, self._shared.options.serializer)
        return default if value is UNREADABLE else value

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Store a value, and replace what other nodes hold."""
        resource_id, ttl_s = self.resource_id(key, version), self.get_backend_timeout(timeout)
        cache, tenant_id = self._where()
        if ttl_s is None:
            cache.invalidate(self._type, resource_id, tenant_id)
        else:
            cache.set(self._type, resource_id, self._encoded(value), tenant_id, ttl=ttl_s)

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store a value where there is none; whether it was stored."""
        resource_id, ttl_s = self.resource_id(key, version), self.get_backend_timeout(timeout)
        cache, tenant_id = self._where()
        if ttl_s is None:
            return cache.get(self._type, resource_id, tenant_id) is None
        return cache.add(self._type, resource_id, self._encoded(value), ttl_s, tenant_id)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Let a value live for so long from now on; whether there is one."""
        ttl_s = self.get_backend_timeout(timeout)
        if ttl_s is None:
            return self.delete(key, version)
        left_s = None if ttl_s == math.inf else ttl_s
        return self._exchanged(key, version, lambda present: present._replace(left_s=left_s)) is not None

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Remove a value everywhere; whether it was this call that removed one: of several at once one alone is told
        so, and in an outage none. A load of it that is under way is kept nowhere."""
        resource_id = self.resource_id(key, version)
        cache, tenant_id = self._where()
        try:
            removed = self._exchanged(key, version, lambda present: PresentValue(REMOVED, TTL_MIN_S)) is not None
        except CacheBusError:  # who had it is not known: it goes all the same
            removed = False
        cache.invalidate(self._type, resource_id, tenant_id)
        return removed

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> Any:
        """Add to a number, whose lifetime stays; atomic. `ValueError` where there is no value."""
        result: Any = None

        def add(present: PresentValue) -> PresentValue:
            nonlocal result
            value = decoded(present.value, self._shared.options.serializer)
            if value is UNREADABLE:
                raise ValueError(f"Key {key!r} has no value that can be read")
            result = value + delta
            return present._replace(value=self._encoded(result))

        if self._exchanged(key, version, add) is None:
            raise ValueError(f"Key {key!r} not found")
        return result

    def get_or_set(self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> Any:
        """The value; where there is none, what `default` is, or gives if it is a function: that is called once over all
        nodes, and on this thread if it is this call that loads. What is deleted meanwhile is stored nowhere. It may
        decide by `Fresh` or `DontCache`; the shortest of its `ttl_s` and the timeout counts."""
        resource_id, ttl_s = self.resource_id(key, version), self.get_backend_timeout(timeout)
        if ttl_s is None:
            value = self.get(key, UNREADABLE, version)
            return _value_of(default) if value is UNREADABLE else value
        cache, tenant_id = self._where()
        serializer = self._shared.options.serializer

        def load() -> Any:
            return encoded_answer(_answer_of(default), serializer)

        for refresh in (False, True):  # what can't be read is loaded anew
            data = cache.get_or_load(self._type, resource_id, load, tenant_id, ttl=ttl_s, refresh=refresh)
            value = decoded(data, serializer)
            if value is not UNREADABLE:
                return value
        return _value_of(default)

    # -- many -------------------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """The values by their keys, absent ones left out; one round trip for 250."""
        asked = {key: self.resource_id(key, version) for key in keys}
        cache, tenant_id = self._where()
        found = cache.get_many(self._type, set(asked.values()), tenant_id)
        data = {key: found[resource_id] for key, resource_id in asked.items() if resource_id in found}
        values = {key: decoded(one, self._shared.options.serializer) for key, one in data.items()}
        return {key: value for key, value in values.items() if value is not UNREADABLE}

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Store several values, in one round trip for many; what can't be carried is told before anything is stored.
        Returns the keys that were not stored: none, as it raises instead."""
        ttl_s = self.get_backend_timeout(timeout)
        if ttl_s is None:
            self.delete_many(data, version)
            return []
        values = {self.resource_id(key, version): self._encoded(value) for key, value in data.items()}
        cache, tenant_id = self._where()
        if values:
            cache.set_many(self._type, values, tenant_id, ttl=ttl_s)
        return []

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Remove several values everywhere, 250 in one step."""
        targets = [Target(self._type, self.resource_id(key, version)) for key in keys]
        self._shared.invalidate(targets, self._shared.options.tenant_id())

    def clear(self) -> None:
        """Remove all values of this alias's type, of all tenants. What else lies in the Redis stays."""
        self._shared.cache.invalidate_type(self._type)

    # -- what they share ----------------------------------------------------------------------------------------------

    def _encoded(self, value: Any) -> bytes:
        return encoded(value, self._shared.options.serializer)

    def _exchanged(
        self, key: Any, version: int | None, change: Callable[[PresentValue], PresentValue]
    ) -> PresentValue | None:
        """What `change` makes of a value, stored in its place; None where there is none."""

        def changed(present: PresentValue) -> PresentValue:
            if present.value == REMOVED:
                raise _AlreadyRemoved
            return change(present)

        resource_id, tenant_id = self.resource_id(key, version), self._shared.options.tenant_id()
        try:
            return self._shared.exchange(resource_id, tenant_id, changed)
        except _AlreadyRemoved:
            return None


def _answer_of(default: Any) -> Any:
    return default() if callable(default) else default


def _value_of(default: Any) -> Any:
    """What is given to who asks, of what is stored nowhere."""
    answer = _answer_of(default)
    return answer.value if isinstance(answer, Fresh | DontCache) else answer
