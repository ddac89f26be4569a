"""`BlockingCache`: the verbs of a `Cache` for synchronous code, from any number of threads.

A hit of L1 is answered on the calling thread (`cachebus.threads.hit`). All else is the verb of a `Cache` that lives on
the event loop of this process, waited for (`cachebus.threads.crossing`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast, overload

from cachebus.assembly.factory import Parts
from cachebus.base.ids import Id
from cachebus.base.parameters import SourceFunction
from cachebus.cache import Cache
from cachebus.decided import Answer, Decided
from cachebus.declaration import CachedOptions
from cachebus.listening.explanation import Explanation
from cachebus.many import MANY
from cachebus.reading.looked import CachedValue
from cachebus.receipt import Receipt
from cachebus.threads.batches import BlockingBatches
from cachebus.threads.decorator import BlockingDecorator, decorator_of
from cachebus.threads.hit import name_of_ids, served

T = TypeVar("T")


class BlockingCache(BlockingBatches):
    """A node's cache for synchronous code: `with BlockingCache.open(url) as cache: cache.get("config", "x", "acme")`.

    It has the verbs of `Cache`, with the same parameters, results and errors, and may be used from any thread. Made at
    import time it is opened by its first call, in each process anew: also behind a fork. All caches of a process share
    one event loop, in a thread of its own.

    - A plain function as the loader runs on the calling thread, with its connections and context variables, if that one
      has begun the load; others join it and wait. Where the caller need not wait for it, or has gone, it runs in a
      thread of its own: a refresh in the background, a load of a type with `load_soft_timeout_s`, one that others still
      wait for. `blocking(load)` always runs in a thread of its own, an async function on the event loop
    - A call may wait for `timeout_s`; see `open`
    - In async code, await a `Cache`: this one would have the event loop stand still
    """

    def get(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        use_memory: bool = True,
        default: Any = None,
        after: Receipt | str | None = None,
    ) -> Any:
        """As `Cache.get`."""
        if use_memory and after is None:
            name = name_of_ids(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
            entry = served(self._entries, name, self._clock)
            if entry is not None:
                return entry.value
        ids = data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id
        return self._ask(lambda cache: cache.get(*ids, search_hierarchy, use_memory, default, after))

    @overload
    def get_or_load(
        self,
        data_type: str,
        resource_id: Id,
        loader: Callable[..., Awaitable[Decided[T]] | Decided[T]],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
        refresh: bool = False,
    ) -> T: ...
    @overload
    def get_or_load(
        self,
        data_type: str,
        resource_id: Id,
        loader: Callable[..., Awaitable[Decided[T] | None]],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
        refresh: bool = False,
    ) -> T | None: ...
    @overload
    def get_or_load(
        self,
        data_type: str,
        resource_id: Id,
        loader: Callable[..., Awaitable[Answer[T]]],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
        refresh: bool = False,
    ) -> T: ...
    @overload
    def get_or_load(
        self,
        data_type: str,
        resource_id: Id,
        loader: Callable[..., Answer[T]],
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
        refresh: bool = False,
    ) -> T: ...
    @overload
    def get_or_load(
        self,
        data_type: str,
        resource_id: Id,
        loader: None = None,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
        refresh: bool = False,
        *,
        batch: Callable[..., Awaitable[Mapping[Any, Decided[T]]] | Mapping[Any, Decided[T]]],
        batch_max: int = MANY,
    ) -> T | None: ...
    @overload
    def get_or_load(
        self,
        data_type: str,
        resource_id: Id,
        loader: None = None,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
        refresh: bool = False,
        *,
        batch: Callable[..., Awaitable[Mapping[Any, Answer[T]]]],
        batch_max: int = MANY,
    ) -> T | None: ...
    @overload
    def get_or_load(
        self,
        data_type: str,
        resource_id: Id,
        loader: None = None,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
        refresh: bool = False,
        *,
        batch: Callable[..., Mapping[Any, Answer[T]]],
        batch_max: int = MANY,
    ) -> T | None: ...
    def get_or_load(
        self,
        data_type: str,
        resource_id: Id,
        loader: SourceFunction | None = None,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
        refresh: bool = False,
        *,
        batch: SourceFunction | None = None,
        batch_max: int = MANY,
    ) -> Any:
        """As `Cache.get_or_load`. On which thread the loader runs is told at the class."""
        if use_memory and after is None and not refresh:
            name = name_of_ids(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
            entry = served(self._entries, name, self._clock)
            if entry is not None:
                return entry.value

        async def load(cache: Cache, source: SourceFunction) -> Any:
            contexts = tenant_id, agent_id, conversation_id, collection_id
            found: Any = await cache.get_or_load(
                data_type,
                resource_id,
                cast("Any", source if batch is None else loader),
                *contexts,
                search_hierarchy=search_hierarchy,
                ttl=ttl,
                tags=tags,
                after=after,
                use_memory=use_memory,
                refresh=refresh,
                batch=cast("Any", None if batch is None else source),
                batch_max=batch_max,
            )
            return found

        return self._load(data_type, loader if batch is None else batch, load)

    def look(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        after: Receipt | str | None = None,
    ) -> CachedValue[Any]:
        """As `Cache.look`."""
        ids = data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id
        return self._ask(lambda cache: cache.look(*ids, after=after))

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """As `Cache.bypassed`, for this thread."""

        async def live(cache: Cache) -> tuple[Cache, Parts]:
            return cache, cache._live()

        there, parts = self._ask(live)
        with parts.reader.bypass.entered(self, there):  # what this thread does not answer, that one does
            yield

    def explain(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
    ) -> Explanation:
        """As `Cache.explain`."""
        ids = data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id
        return self._ask(lambda cache: cache.explain(*ids))

    def cached(
        self,
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
    ) -> BlockingDecorator:
        """Cache a sync function's results here. As `cachebus.cached`, for plain functions, methods and, below
        `@staticmethod`, static ones; on class methods it can't be put."""
        templates = {
            "resource_id": resource_id,
            "tenant_id": tenant_id,
            "agent_id": agent_id,
            "conversation_id": conversation_id,
            "collection_id": collection_id,
        }
        return decorator_of(CachedOptions(data_type, templates, tags, ttl, ignore, self, is_sync=True))
