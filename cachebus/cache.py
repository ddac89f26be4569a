"""`Cache`: the verbs that read, on top of those that write. A hit is written out here; all else is a call below.

The hit stands in several places: twice here, in `cachebus.helpers.get_with_cache_aside`, and twice in
`cachebus.handle`, for a type that was looked at before. One function for all of them would make each hit 7 to 13 %
slower (measured), so it is one text between its markers, which a test compares."""

from __future__ import annotations

from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from cachebus.base.ids import Id
from cachebus.base.parameters import SourceFunction
from cachebus.batches import Batches
from cachebus.calls import LoadArguments, load_request, position_after
from cachebus.decided import Answer, Decided
from cachebus.errors import L2Unavailable
from cachebus.handle import TypedCache, handled
from cachebus.listening.explanation import Explanation
from cachebus.many import MANY, Sources, load_by
from cachebus.reading.judge import MISSING, NOT_FOUND
from cachebus.reading.looked import CachedValue
from cachebus.receipt import Receipt

T = TypeVar("T")


class Cache(Batches):
    """A node's cache: memory in front of a shared store, kept coherent by the bus. Made by `Cache.open`; see `Life`.

    What the verbs have in common:

    - ids are str, int or UUID; `data_type` and `resource_id` name a value, the other ids the context it belongs to
    - `tenant_id` comes from the argument, else from the surrounding `Context`, else it is `default_tenant`
    - `ttl`: seconds that a value lives, or `TTL_PERMANENT`; None is the type's (see `Policy`)
    - `tags`: names by which values are invalidated together; those of the type are added
    - `after`: a receipt, or its text, whose write the read must see
    - `wait="nodes"`: return when no node serves the former value any more; see `invalidate`

    All raise `ConfigError` where the cache is not open, and for a call from another event loop than that which opened
    it; `InvalidKey` for what is no id; `TenantRequired` where there is no tenant; `ValueError` for other arguments.
    """

    async def get(
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
        """Read a value.

        - `search_hierarchy`: where the given context has none, look without the collection, then without the
          conversation, then without the agent
        - `use_memory`: False skips L1
        - `default`: given where there is no value, also where the source is known to have none

        Returns the value, or `default`. Raises `L2Unavailable`, unless `on_outage` says that an outage is a miss.
        """
        # Only what is exactly str or int is joined to a name: anything else might write itself as another's id, and of
        # these no invalid one can have made an entry of that name. "" must not meet the data of `system`.
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
        entry = self._entries.get(name)
        if entry is not None and use_memory and after is None:
            now, home = self._clock(), self._loop
            # hit: serve
            group = entry.group
            if now < entry.fast_until_s and now < group.valid_until_s and running_loop() is home:
                group.hits += 1.0
                if entry.freq < 3:
                    entry.freq += 1
                # hit: end
                return entry.value
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id, name=name)
        position = position_after(parts, after, key)
        if search_hierarchy:
            value = (await parts.reader.search(key, position, use_memory)).value
        else:
            value = await parts.reader.get(key, position, use_memory)
        return default if value is MISSING or value is NOT_FOUND else value

    @overload
    async def get_or_load(
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
    async def get_or_load(
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
    async def get_or_load(
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
    async def get_or_load(
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
    async def get_or_load(
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
    async def get_or_load(
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
    async def get_or_load(
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
    async def get_or_load(
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
        """Read a value, or load it: one load a key at a time on this node, and one over all nodes.

        - `loader`: a function, sync or async. Its parameters `resource_id`, `tenant_id` and `ctx` (the surrounding
          `Context`) get these as given, and `previous` gets what is still cached; its others without a default get what
          is left of the three. It returns the value, None for not found, or what it decides of it: `Fresh`,
          `DontCache`, `NotModified`
        - `batch`: in the place of a loader, what loads several ids, as of `get_or_load_many`. The calls of one tick of
          the event loop that differ in their ids alone have it called once, for up to `batch_max` of them, 250 at most
        - `ttl`, `tags`: count for the load that makes the value; on a hit they are ignored
        - `search_hierarchy`, `use_memory`: as in `get`
        - `refresh`: load anew, whatever is cached, and put that in its place in L2 and here; nothing older than the
          call is given. What the source raises is raised, and leaves what was there

        Returns the value, or None. It has the type that the loader says; a dataclass or a pydantic model only where the
        type has it as its model (`Policy`, `Cache.of`), else it comes as a dict, and the log says so once. Without
        L2 the source is asked, and its answer kept for the staleness bound. Raises what the loader raises after its
        type's retries; `LoadTimeout` when it takes too long; `ConfigError` for a loader that needs other arguments,
        gives an iterator, or waits for itself.
        """
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
        entry = self._entries.get(name)
        if entry is not None and use_memory and after is None and not refresh:
            now, home = self._clock(), self._loop
            # hit: serve
            group = entry.group
            if now < entry.fast_until_s and now < group.valid_until_s and running_loop() is home:
                group.hits += 1.0
                if entry.freq < 3:
                    entry.freq += 1
                # hit: end
                return entry.value
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id, name=name)
        load = load_by(parts, key, Sources(loader, batch, batch_max, resource_id, tenant_id))
        given = LoadArguments(after, search_hierarchy, ttl, tags, use_memory, refresh)
        request = load_request(parts, key, load, given)
        return (await parts.loads.get_or_load(request)).value

    async def look(
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
        """Read a value, and what is known of it: its level, age, time left, version and tags. It is as coherent as
        `get`, and counts as one read; it loads nothing.

        Returns a `CachedValue`, which also tells "not found" and an expired value from nothing at all. Raises what
        `get` does.
        """
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
        return await parts.loads.look(key, position_after(parts, after, key))

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Have reads of this cache ask the source alone, in this task and in those that it starts in the block:
        `with cache.bypassed():`. What `get_or_load` loads there is given to its caller, and no level keeps it; `get`
        gives its default, `get_many` nothing, `look` something absent. Writes and invalidations are as ever."""
        with self._live().reader.bypass.entered(self):
            yield

    @overload
    def of(
        self, data_type: str, *, model: type[T], tags: Sequence[str] = (), ttl: float | None = None
    ) -> TypedCache[T]: ...
    @overload
    def of(
        self, data_type: str, *, model: Any = None, tags: Sequence[str] = (), ttl: float | None = None
    ) -> TypedCache[Any]: ...
    def of(
        self, data_type: str, *, model: Any = None, tags: Sequence[str] = (), ttl: float | None = None
    ) -> TypedCache[Any]:
        """The verbs for one data type: `products = cache.of("product", model=Product)`, then
        `await products.get(7, tenant_id="acme")`. The cache may be open or not.

        - `model`: what the type's values are decoded into, for all who read them in this cache, as `Policy(model=...)`
        - `tags`: added to each value that is set or loaded by it
        - `ttl`: seconds that these live, where a call gives none; None is the type's

        Raises `ConfigError` where the type has another model, by its policy, a function of `@cached` or another handle.
        """
        return handled(self, self.decode_into, data_type, model, (tags, ttl))

    async def explain(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
    ) -> Explanation:
        """Find out why a read gives what it gives: what L2 has, what has replaced it last, which node holds it, and
        until when at most each may serve it. For people who wonder, not for programs that decide: it asks every node.

        Changes nothing, and counts as no read. It takes up to a second where a node does not answer. Under which other
        names the id lies, where it lies under none of these, only the command says: it looks through all of L2's keys.

        Returns an `Explanation`, with a verdict in a sentence. Raises `L2Unavailable`, also where the cache is off.
        """
        parts = self._live()
        if not self.settings.enabled:
            raise L2Unavailable("the cache is off (enabled=False): each read asks the source, and nothing is kept")
        ids = tenant_id, agent_id, conversation_id, collection_id
        return await parts.explainer.explain(parts.naming.key(data_type, resource_id, *ids))
