"""The verbs of `BlockingCache` for many ids at once: each is the verb of `Cache`, waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Any, overload

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id, several
from cachebus.base.parameters import SourceFunction, passing_of
from cachebus.batches import IdT, T, TargetT
from cachebus.cache import Cache
from cachebus.decided import Answer, Decided
from cachebus.errors import ConfigError
from cachebus.receipt import Receipt
from cachebus.threads.crossing import Crossing, OnCaller
from cachebus.threads.writes import BlockingWrites


class BlockingBatches(BlockingWrites):
    """What every `BlockingCache` has for many ids at once. What a caller iterates over is read on its own thread."""

    def get_many(
        self,
        data_type: str,
        resource_ids: Iterable[Id],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        after: Receipt | str | None = None,
    ) -> dict[Id, Any]:
        """As `Cache.get_many`."""
        asked = several("resource_ids", resource_ids)  # here: an iterator of the caller's may be bound to its thread
        contexts = tenant_id, agent_id, conversation_id, collection_id
        return self._ask(lambda cache: cache.get_many(data_type, asked, *contexts, after=after))

    def get_targets(
        self, targets: Iterable[TargetT], tenant_id: Id | None = None, *, after: Receipt | str | None = None
    ) -> dict[TargetT, Any]:
        """As `Cache.get_targets`."""
        asked = several("targets", targets)
        return self._ask(lambda cache: cache.get_targets(asked, tenant_id, after=after))

    @overload
    def get_or_load_many(
        self,
        data_type: str,
        resource_ids: Iterable[IdT],
        loader: Callable[..., Awaitable[Mapping[Any, Decided[T]]] | Mapping[Any, Decided[T]]],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
    ) -> dict[IdT, T]: ...
    @overload
    def get_or_load_many(
        self,
        data_type: str,
        resource_ids: Iterable[IdT],
        loader: Callable[..., Awaitable[Mapping[Any, Answer[T]]]],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
    ) -> dict[IdT, T]: ...
    @overload
    def get_or_load_many(
        self,
        data_type: str,
        resource_ids: Iterable[IdT],
        loader: Callable[..., Mapping[Any, Answer[T]]],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
    ) -> dict[IdT, T]: ...
    def get_or_load_many(
        self,
        data_type: str,
        resource_ids: Iterable[Any],
        loader: SourceFunction,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
    ) -> dict[Any, Any]:
        """As `Cache.get_or_load_many`. On which thread the loader runs is told at `BlockingCache`."""
        asked = several("resource_ids", resource_ids)

        async def load(cache: Cache, source: SourceFunction) -> Any:
            contexts = tenant_id, agent_id, conversation_id, collection_id
            return await cache.get_or_load_many(
                data_type,
                asked,
                source,
                *contexts,
                search_hierarchy=search_hierarchy,
                ttl=ttl,
                tags=tags,
                after=after,
                use_memory=use_memory,
            )

        found: dict[Any, Any] = self._load(data_type, loader, load)
        return found

    def set_many(
        self,
        data_type: str,
        values: Mapping[Any, Any],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        ttl: float | None = None,
        *,
        tags: Sequence[str] = (),
        wait: Wait | None = None,
    ) -> Receipt:
        """As `Cache.set_many`."""
        given, contexts = dict(values), (tenant_id, agent_id, conversation_id, collection_id)
        return self._ask(lambda cache: cache.set_many(data_type, given, *contexts, ttl, tags=tags, wait=wait))

    def invalidate_many(
        self,
        data_type: str,
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
        """As `Cache.invalidate_many`."""
        asked, around = several("resource_ids", resource_ids), (tenant_id, agent_id, conversation_id, collection_id)
        return self._ask(
            lambda cache: cache.invalidate_many(data_type, asked, *around, contexts=contexts, wait=wait, reason=reason),
            self._sending,
        )

    def _load(
        self, data_type: str, loader: SourceFunction | None, verb: Callable[[Cache, SourceFunction], Awaitable[Any]]
    ) -> Any:
        """What a verb gives that loads by this function."""
        if loader is None:
            raise ConfigError("get_or_load needs a loader, or batch=, what loads several ids")
        if iscoroutinefunction(loader):
            return self._ask(lambda cache: verb(cache, loader), self._loading(data_type)[0])
        passing_of(loader)  # what can't be used is told before anything begins
        limit, apart = self._loading(data_type)
        crossing = Crossing()
        source = OnCaller(loader, crossing, apart=apart)
        return self._ask(lambda cache: verb(cache, source), limit, crossing)
