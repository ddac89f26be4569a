"""`TypedCache`: the verbs of a cache for one data type, whose values have one Python type. Made by `Cache.of`.

1. A hit in L1 is written out here once more, since a call would make it slower: it is the text of `Cache.get`, with a
   data type that was looked at when the handle was made. A test compares them.
2. Everything else is the verb of the cache, with the data type, the tags and the TTL of the handle.
"""

from __future__ import annotations

from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable, Mapping, MutableSet, Sequence
from typing import Any, TypeVar, overload

from cachebus.base.definition import Definition
from cachebus.base.ids import Id, check_part
from cachebus.base.parameters import SourceFunction
from cachebus.context import IDS
from cachebus.decided import Answer
from cachebus.handle_many import TypedMany
from cachebus.many import MANY
from cachebus.receipt import Receipt
from cachebus.values import check_model

T = TypeVar("T")
D = TypeVar("D")

DecodeInto = Callable[[str, Any, Definition], None]
Rest = tuple[Sequence[str], float | None]
"""Tags, and a time to live in seconds."""


class NoMemory:
    """In place of a cache whose memory is not to be looked into by its name: nothing is found there."""

    _entries: Mapping[str, Any] = {}


def handled(cache: Any, decode_into: DecodeInto, data_type: str, model: Any, rest: Rest) -> TypedCache[Any]:
    """A handle whose model is that of its type from now on; `ConfigError` where the type has another one, or for what
    no value can be decoded into. Any says nothing."""
    made = TypedCache[Any](cache, data_type, *rest)
    if model is not None and model is not Any:
        check_model(model)
        decode_into(made.data_type, model, Definition(f"of({made.data_type!r})", "cache", None, None))
    return made


class TypedCache(TypedMany[T]):
    """One data type of a cache: `products = cache.of("product", model=Product)`. Its verbs are those of the cache,
    without `data_type`; parameters, results and errors are theirs. It may be made before the cache is opened.

    - values come as the handle's model, in every verb, and so they do for all others who read the type in this cache
    - its tags are added to each value that is set or loaded by it; its `ttl` counts where a call gives none
    - every id may be given by its name, or in the order of the cache's verbs
    """

    __slots__ = ("_memory", "_others")

    def __init__(self, cache: Any, data_type: str, tags: Sequence[str] = (), ttl: float | None = None) -> None:
        """`cache`: whose verbs it calls, and in whose memory it looks."""
        super().__init__(cache, data_type, tags, ttl)
        self._memory = cache
        self._others: MutableSet[TypedCache[Any]] | None = None

    def join(self, others: MutableSet[TypedCache[Any]], cache: Any) -> None:
        """Be among these, and so be all that are made by `within`: they are told in whose memory to look. Now in this
        cache's, None for nowhere."""
        self._others = others
        others.add(self)
        self.look_in(cache)

    def look_in(self, cache: Any) -> None:
        """Have hits be looked for in this cache's memory, None for nowhere: the process-wide cache comes and goes."""
        self._memory = NoMemory if cache is None else cache

    def within(
        self,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
    ) -> TypedCache[T]:
        """The same with these ids given: `mine = products.within(tenant_id="acme")`, then `await mine.get(7)`.

        A call that gives another one in the place of an id that is bound raises `InvalidKey`, and so does this. A hit
        of it takes longer: see the page.
        """
        bound = self._bound((tenant_id, agent_id, conversation_id, collection_id))
        for name, part in zip(IDS, bound, strict=True):
            if part is not None:
                check_part(name, part)
        made = TypedCache[T](self._cache, self._data_type, self._tags, self._ttl)
        made._memory, made._within, made._infix = self._memory, bound, None
        if self._others is not None:
            made.join(self._others, None if self._memory is NoMemory else self._memory)
        return made

    # -- reading --------------------------------------------------------------------------------------------------

    @overload
    async def get(
        self,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        use_memory: bool = True,
        default: None = None,
        after: Receipt | str | None = None,
    ) -> T | None: ...
    @overload
    async def get(
        self,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        use_memory: bool = True,
        *,
        default: D,
        after: Receipt | str | None = None,
    ) -> T | D: ...
    async def get(
        self,
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
        """Read a value; see `Cache.get`."""
        infix, cache = self._infix, self._memory
        if infix is None:
            infix, tenant_id, agent_id, conversation_id, collection_id = self._filled(
                tenant_id, agent_id, conversation_id, collection_id
            )
        # hit: name of a type
        name = ""
        if ((type(tenant_id) is str and tenant_id != "") or type(tenant_id) is int) and (
            type(resource_id) is str or type(resource_id) is int
        ):
            try:
                if agent_id is None and conversation_id is None and collection_id is None:
                    name = f"{tenant_id}{infix}{resource_id}\x1e\x1e\x1e"
                elif (
                    (agent_id is None or type(agent_id) is str or type(agent_id) is int)
                    and (conversation_id is None or type(conversation_id) is str or type(conversation_id) is int)
                    and (collection_id is None or type(collection_id) is str or type(collection_id) is int)
                ):
                    a = "\x1e" if agent_id is None else f"\x1f{agent_id}"
                    c = "\x1e" if conversation_id is None else f"\x1f{conversation_id}"
                    o = "\x1e" if collection_id is None else f"\x1f{collection_id}"
                    name = f"{tenant_id}{infix}{resource_id}{a}{c}{o}"
            except ValueError:
                name = ""  # an int of more digits than Python writes: no id
        # hit: end
        entry = cache._entries.get(name)
        if entry is not None and use_memory and after is None:
            now, home = cache._clock(), cache._loop
            # hit: serve
            group = entry.group
            if now < entry.fast_until_s and now < group.valid_until_s and running_loop() is home:
                group.hits += 1.0
                if entry.freq < 3:
                    entry.freq += 1
                # hit: end
                return entry.value
        ids = tenant_id, agent_id, conversation_id, collection_id  # with those that are bound
        return await self._cache.get(self._data_type, resource_id, *ids, search_hierarchy, use_memory, default, after)

    @overload
    async def get_or_load(
        self,
        resource_id: Id,
        loader: Callable[..., Awaitable[Answer[T]] | Answer[T]],
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
    async def get_or_load(
        self,
        resource_id: Id,
        loader: Callable[..., Awaitable[Answer[T | None]] | Answer[T | None]],
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
    async def get_or_load(
        self,
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
        batch: Callable[..., Awaitable[Mapping[Any, Answer[T | None]]] | Mapping[Any, Answer[T | None]]],
        batch_max: int = MANY,
    ) -> T | None: ...
    async def get_or_load(
        self,
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
        """Read a value, or load it; see `Cache.get_or_load`."""
        infix, cache = self._infix, self._memory
        if infix is None:
            infix, tenant_id, agent_id, conversation_id, collection_id = self._filled(
                tenant_id, agent_id, conversation_id, collection_id
            )
        # hit: name of a type
        name = ""
        if ((type(tenant_id) is str and tenant_id != "") or type(tenant_id) is int) and (
            type(resource_id) is str or type(resource_id) is int
        ):
            try:
                if agent_id is None and conversation_id is None and collection_id is None:
                    name = f"{tenant_id}{infix}{resource_id}\x1e\x1e\x1e"
                elif (
                    (agent_id is None or type(agent_id) is str or type(agent_id) is int)
                    and (conversation_id is None or type(conversation_id) is str or type(conversation_id) is int)
                    and (collection_id is None or type(collection_id) is str or type(collection_id) is int)
                ):
                    a = "\x1e" if agent_id is None else f"\x1f{agent_id}"
                    c = "\x1e" if conversation_id is None else f"\x1f{conversation_id}"
                    o = "\x1e" if collection_id is None else f"\x1f{collection_id}"
                    name = f"{tenant_id}{infix}{resource_id}{a}{c}{o}"
            except ValueError:
                name = ""  # an int of more digits than Python writes: no id
        # hit: end
        entry = cache._entries.get(name)
        if entry is not None and use_memory and after is None and not refresh:
            now, home = cache._clock(), cache._loop
            # hit: serve
            group = entry.group
            if now < entry.fast_until_s and now < group.valid_until_s and running_loop() is home:
                group.hits += 1.0
                if entry.freq < 3:
                    entry.freq += 1
                # hit: end
                return entry.value
        ids = tenant_id, agent_id, conversation_id, collection_id  # with those that are bound
        rest = search_hierarchy, self._ttl if ttl is None else ttl, self._with_tags(tags), after, use_memory, refresh
        together = {} if batch is None else {"batch": batch, "batch_max": batch_max}
        return await self._cache.get_or_load(self._data_type, resource_id, loader, *ids, *rest, **together)
