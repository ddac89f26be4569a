"""What `TypedCache` is made of beside its hits: the ids that are bound, the verbs for many ids, and those that write.

Each is the verb of the cache, with the data type, the tags and the TTL of the handle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id, check_part
from cachebus.base.lifetimes import TAGS_MAX, check_ttl
from cachebus.context import IDS, Ids
from cachebus.decided import Answer
from cachebus.errors import ConfigError, InvalidKey
from cachebus.reading.looked import CachedValue
from cachebus.receipt import Receipt

T = TypeVar("T")
IdT = TypeVar("IdT", bound=Id)

NOTHING_BOUND: Ids = (None, None, None, None)


class TypedMany(Generic[T]):
    """The verbs of a handle that are not in a hurry; what they have in common is told at `TypedCache`."""

    __slots__ = ("__weakref__", "_cache", "_data_type", "_infix", "_tags", "_ttl", "_within")

    def __init__(self, cache: Any, data_type: str, tags: Sequence[str] = (), ttl: float | None = None) -> None:
        """`cache`: whose verbs it calls."""
        self._data_type = check_part("data_type", data_type)
        if isinstance(tags, str | bytes):
            raise ConfigError(f"the tags of {data_type!r} must be a sequence of strings")
        self._tags = tuple(check_part("tag", tag) for tag in tags)
        if len(self._tags) > TAGS_MAX:
            raise ConfigError(f"a value takes at most {TAGS_MAX} tags")
        self._ttl = None if ttl is None else check_ttl(ttl)
        self._infix: str | None = f"\x1f{self._data_type}\x1f"
        """What stands in L1 names between tenant and resource id; None where ids are bound, which go there first."""
        self._within = NOTHING_BOUND
        self._cache = cache

    @property
    def data_type(self) -> str:
        """The data type that it is of."""
        return self._data_type

    def __repr__(self) -> str:
        bound = "".join(f", {name}={part!r}" for name, part in zip(IDS, self._within, strict=True) if part is not None)
        return f"<typed cache of {self._data_type!r}{bound}>"

    async def look(
        self,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        after: Receipt | str | None = None,
    ) -> CachedValue[T]:
        """Read a value, and what is known of it; see `Cache.look`."""
        ids = self._ids(tenant_id, agent_id, conversation_id, collection_id)
        return cast("CachedValue[T]", await self._cache.look(self._data_type, resource_id, after=after, **ids))

    # -- many ids -------------------------------------------------------------------------------------------------

    async def get_many(
        self,
        resource_ids: Iterable[Id],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        after: Receipt | str | None = None,
    ) -> dict[Id, T]:
        """Read several values; see `Cache.get_many`."""
        ids = self._ids(tenant_id, agent_id, conversation_id, collection_id)
        found: dict[Id, T] = await self._cache.get_many(self._data_type, resource_ids, after=after, **ids)
        return found

    async def get_or_load_many(
        self,
        resource_ids: Iterable[IdT],
        loader: Callable[..., Awaitable[Mapping[Any, Answer[T | None]]] | Mapping[Any, Answer[T | None]]],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
    ) -> dict[IdT, T]:
        """Read several values, and load those that are missing; see `Cache.get_or_load_many`."""
        ids = self._ids(tenant_id, agent_id, conversation_id, collection_id)
        how = {"search_hierarchy": search_hierarchy, "after": after, "use_memory": use_memory}
        ttl, tags = self._ttl if ttl is None else ttl, self._with_tags(tags)
        loaded = self._cache.get_or_load_many(self._data_type, resource_ids, loader, ttl=ttl, tags=tags, **how, **ids)
        return cast("dict[IdT, T]", await loaded)

    async def set_many(
        self,
        values: Mapping[Any, T],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        ttl: float | None = None,
        *,
        tags: Sequence[str] = (),
        wait: Wait | None = None,
    ) -> Receipt:
        """Store several values, by their ids; see `Cache.set_many`."""
        ids = self._ids(tenant_id, agent_id, conversation_id, collection_id)
        ttl, tags = self._ttl if ttl is None else ttl, self._with_tags(tags)
        stored = self._cache.set_many(self._data_type, values, ttl=ttl, tags=tags, wait=wait, **ids)
        return cast("Receipt", await stored)

    async def invalidate_many(
        self,
        resource_ids: Iterable[Id],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        contexts: ContextMatch = "exact",
        wait: Wait | None = None,
        reason: str | None = None,
    ) -> Receipt:
        """Say that several values are replaced, in one atomic step; see `Cache.invalidate_many`."""
        ids = self._ids(tenant_id, agent_id, conversation_id, collection_id)
        how = {"contexts": contexts, "wait": wait, "reason": reason}
        return cast("Receipt", await self._cache.invalidate_many(self._data_type, resource_ids, **how, **ids))

    # -- writing --------------------------------------------------------------------------------------------------

    async def set(
        self,
        resource_id: Id,
        value: T,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        ttl: float | None = None,
        *,
        tags: Sequence[str] = (),
        wait: Wait | None = None,
    ) -> Receipt:
        """Store a value; see `Cache.set`."""
        ids = self._ids(tenant_id, agent_id, conversation_id, collection_id)
        ttl, tags = self._ttl if ttl is None else ttl, self._with_tags(tags)
        stored = self._cache.set(self._data_type, resource_id, value, ttl=ttl, tags=tags, wait=wait, **ids)
        return cast("Receipt", await stored)

    async def add(
        self,
        resource_id: Id,
        value: T,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        ttl: float | None = None,
        *,
        tags: Sequence[str] = (),
    ) -> bool:
        """Store a value only where there is none; see `Cache.add`, but here `ttl` stands where it does in `set`."""
        ids = self._ids(tenant_id, agent_id, conversation_id, collection_id)
        ttl, tags = self._ttl if ttl is None else ttl, self._with_tags(tags)
        return cast("bool", await self._cache.add(self._data_type, resource_id, value, ttl=ttl, tags=tags, **ids))

    async def invalidate(
        self,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        contexts: ContextMatch = "exact",
        wait: Wait | None = None,
        reason: str | None = None,
    ) -> Receipt:
        """Say that a value is replaced, everywhere; see `Cache.invalidate`."""
        ids = self._ids(tenant_id, agent_id, conversation_id, collection_id)
        how = {"contexts": contexts, "wait": wait, "reason": reason}
        return cast("Receipt", await self._cache.invalidate(self._data_type, resource_id, **how, **ids))

    delete = invalidate
    """Remove a value: `invalidate` by its other name."""

    # -- what they have in common ---------------------------------------------------------------------------------

    def _with_tags(self, tags: Sequence[str]) -> Sequence[str]:
        return (*self._tags, *tags) if self._tags and not isinstance(tags, str | bytes) else tags

    def _ids(
        self, tenant_id: Id | None, agent_id: Id | None, conversation_id: Id | None, collection_id: Id | None
    ) -> dict[str, Id | None]:
        """The ids of a call by their names, with those that are bound; `InvalidKey`."""
        return dict(zip(IDS, self._bound((tenant_id, agent_id, conversation_id, collection_id)), strict=True))

    def _filled(self, *given: Id | None) -> tuple[str, Id | None, Id | None, Id | None, Id | None]:
        """What a hit goes by, where ids are bound; `InvalidKey`."""
        bound = self._within if given == NOTHING_BOUND else self._bound(given)  # type: ignore[arg-type]
        return f"\x1f{self._data_type}\x1f", *bound

    def _bound(self, given: Ids) -> Ids:
        """The ids of a call, with those that are bound; `InvalidKey` where it gives another one."""
        for name, part, bound in zip(IDS, given, self._within, strict=True):
            if part is not None and bound is not None and check_part(name, part) != check_part(name, bound):
                raise InvalidKey(f"{name} is {bound!r} in {self!r}, and this call gives another one")
        tenant, agent, conversation, collection = (
            part if bound is None else bound for part, bound in zip(given, self._within, strict=True)
        )
        return tenant, agent, conversation, collection
