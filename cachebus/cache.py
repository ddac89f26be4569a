"""`Cache`: the verbs. A hit is written out in the verbs; everything else is a call below."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from cachebus import context
from cachebus.assembly.lifecycle import Life
from cachebus.base.ids import Id, check_part
from cachebus.base.parameters import Source
from cachebus.cascade import Target
from cachebus.keys.key import Key
from cachebus.keys.naming import check_contexts, tag_scopes, tenant_of
from cachebus.policy import Rules, check_ttl
from cachebus.reading.fetch import MISSING, NOT_FOUND
from cachebus.reading.request import Found, Load, Loaded, Request
from cachebus.reading.source import bind, call
from cachebus.receipt import Receipt, position_of
from cachebus.writing.confirm import check_wait
from cachebus.writing.guard import WriteGuard, guard_time_s

Contexts = tuple[Id | None, Id | None, Id | None]
INT64 = 1 << 63
MANY = 250
"""So many keys are asked for at a time: many more would hold up everybody else, here (4 ms) and at the server."""


class Cache(Life):
    """A node's cache: memory in front of a shared store, kept coherent by the bus. Made by `Cache.open`.

    Ids are str, int or UUID. `tenant_id` comes from the argument, else from the surrounding `Context`. All calls belong
    to the event loop in which the cache was opened.
    """

    # -- reading --------------------------------------------------------------------------------------------------

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
        """The cached value, or `default` (also where the source is known to have nothing).

        `search_hierarchy`: when the given contexts have none, look without the collection, then the conversation, then
        the agent. `use_memory=False` skips L1. `after`: a receipt whose write must be seen. Raises `InvalidKey`,
        `TenantRequired`, `L2Unavailable`, and `ValueError` for a bad receipt.
        """
        # The hit, inlined. Only what is exactly str or int is joined to a name: anything else might write itself as
        # another's id, and of these no invalid one can have made an entry of that name. "" is no tenant: it must not
        # meet the data of `system`, which has none.
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
        entry = self._entries.get(name)
        if entry is not None and use_memory and after is None:
            now = self._clock()
            group = entry.group
            if now < entry.fast_until and now < group.valid_until:
                group.hits += 1
                if entry.freq < 3:
                    entry.freq += 1
                return entry.value
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id, name=name)
        position = None if after is None else position_of(after)
        if search_hierarchy:
            value = (await parts.reader.search(key, position, use_memory)).value
        else:
            value = await parts.reader.get(key, position, use_memory)
        return default if value is MISSING or value is NOT_FOUND else value

    async def get_many(
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
        """The cached values by the ids asked, absent ones left out; one round trip for all of 250 that L1 lacks.

        More are asked for 250 after 250, so that neither this process nor the server is held up for others, and are not
        what L2 held at one moment."""
        parts, position = self._live(), position_of(after)
        found: dict[Id, Any] = {}
        ids = iter(resource_ids)
        while some := list(islice(ids, MANY)):
            # Each is looked at before they are told apart: True would else pass for the 1 beside it.
            keys = {
                i: parts.naming.key(data_type, i, tenant_id, agent_id, conversation_id, collection_id) for i in some
            }
            values = await parts.reader.get_many(list(keys.values()), position)
            there = zip(keys, values, strict=True)
            found.update((i, value) for i, value in there if value is not MISSING and value is not NOT_FOUND)
            if len(some) == MANY:
                await asyncio.sleep(0)  # what L1 has is given without any wait
        return found

    async def get_or_load(
        self,
        data_type: str,
        resource_id: Id,
        loader: Source,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        search_hierarchy: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        after: Receipt | str | None = None,
        use_memory: bool = True,
    ) -> Any:
        """The cached value, else what the loader gives.

        The loader, sync or async, gets the resource id, the tenant and the surrounding `Context` by its parameters
        `resource_id`, `tenant_id` and `ctx`; its other parameters without a default get what is left of the three, in
        this order. One load a key at a time on this node, and one over all nodes. None from the loader means not
        found. `ttl` in seconds; None is the type's. What the loader raises after its retries is raised here;
        `LoadTimeout` when it takes too long; `ConfigError` for a loader that can't be used: one that needs other
        arguments, or that gives an iterator. Without L2 the source is asked, and its answer kept for the staleness
        bound.
        """
        # As in `get`.
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
        entry = self._entries.get(name)
        if entry is not None and use_memory and after is None:
            now = self._clock()
            group = entry.group
            if now < entry.fast_until and now < group.valid_until:
                group.hits += 1
                if entry.freq < 3:
                    entry.freq += 1
                return entry.value
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id, name=name)
        rules = parts.policies.rules(key.family.data_type)
        load = self._load_of(bind(loader, resource_id, key.family.tenant or None, context.current()), rules)
        found = await self.load(
            key, load, rules, after=after, search=search_hierarchy, ttl=ttl, tags=tags, use_memory=use_memory
        )
        return found.value

    def _load_of(self, bound: Callable[[], Any], rules: Rules) -> Load:
        # Apart from `get_or_load`: the cells of a closure are made when its function begins, so for every hit too.
        async def load() -> Loaded:
            return Loaded(await self.call_source(bound, rules))

        return load

    async def load(
        self,
        key: Key,
        load: Load,
        rules: Rules,
        *,
        after: Receipt | str | None = None,
        search: bool = False,
        ttl: float | None = None,
        tags: Sequence[str] = (),
        use_memory: bool = True,
        sources: int = 1,
    ) -> Found:
        """The slow path of `get_or_load`, for the functions built on it: with where the value came from."""
        ttl_s = None if ttl is None else check_ttl(ttl)
        request = Request(
            key, load, rules, position_of(after), search, ttl_s, tag_scopes(key, tags, rules), use_memory, sources
        )
        found = await self._live().loads.get_or_load(request)
        return found._replace(value=None) if found.value is NOT_FOUND else found

    @staticmethod
    async def call_source(bound: Callable[[], Any], rules: Rules) -> Any:
        """Run a bound source function with its type's retries and time limit."""
        return await call(
            bound,
            timeout_s=rules.load_timeout_s,
            retries=rules.retries,
            retry_on=rules.retry_on,
            backoff_s=rules.retry_backoff_s,
        )

    # -- writing --------------------------------------------------------------------------------------------------

    async def set(
        self,
        data_type: str,
        resource_id: Id,
        value: Any,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        ttl: float | None = None,
        *,
        tags: Sequence[str] = (),
        wait: str | None = None,
    ) -> Receipt:
        """Store a value here and in L2, and replace what other nodes hold. `ttl` in seconds; None is the type's.

        `wait="nodes"` returns when no node serves the former value; see `invalidate`. Raises `NotSerializable`,
        `ValueTooLarge`, `ValueError` (ttl), `InvalidKey`, `L2Unavailable`.
        """
        return await self._store(
            data_type, resource_id, value, tenant_id, (agent_id, conversation_id, collection_id), ttl, tags, False, wait
        )

    async def add(
        self,
        data_type: str,
        resource_id: Id,
        value: Any,
        ttl: float | None = None,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        tags: Sequence[str] = (),
    ) -> bool:
        """Store a value only where there is none; whether it was stored. Atomic in L2.

        Good for "do this once" and job marks; not a lock to build correctness on, since a failover, an eviction or an
        invalidation frees it. True in a disabled cache: with nothing cached, no value is in the way.
        """
        contexts = agent_id, conversation_id, collection_id
        receipt = await self._store(data_type, resource_id, value, tenant_id, contexts, ttl, tags, True)
        return receipt.stored or not self.settings.enabled

    async def _store(
        self,
        data_type: str,
        resource_id: Id,
        value: Any,
        tenant_id: Id | None,
        contexts: Contexts,
        ttl: float | None,
        tags: Sequence[str],
        if_absent: bool,
        wait: str | None = None,
    ) -> Receipt:
        check_wait(wait)
        parts = self._live()
        ttl_s = None if ttl is None else check_ttl(ttl)
        key = parts.naming.key(data_type, resource_id, tenant_id, *contexts)
        family = key.family
        rules = parts.policies.rules(family.data_type)
        plan = parts.planner.targets(
            [Target(family.data_type, key.resource_id, *key.contexts)], family.tenant or None, on_set=True
        )
        return await parts.writer.set(
            key,
            value,
            rules,
            plan,
            ttl_s=ttl_s,
            tags=tag_scopes(key, tags, rules),
            if_absent=if_absent,
            wait=bool(wait),
        )

    async def invalidate(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        contexts: str = "exact",
        wait: str | None = None,
    ) -> Receipt:
        """Say that what is cached for a resource is replaced, everywhere; cascades are followed.

        This key exactly; with `contexts="all"`, and no context id, the id in every context too. `wait="nodes"` returns
        when every node has applied it, which takes about as long as an event, or has lost its lease, at most the
        staleness bound: the receipt then names both, and no read that begins after that gives what was replaced.
        Raises `InvalidationFailed` when it is not sure to have happened: repeat it then. With `pending_max` in the
        settings it may wait in memory for L2 instead: the receipt's `status` is then "pending", whatever `wait` says.
        """
        check_wait(wait)
        check_contexts(contexts, agent_id, conversation_id, collection_id)
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
        return await parts.writer.invalidate(parts.planner.one(key, all_contexts=contexts == "all"), wait=bool(wait))

    delete = invalidate
    """Remove a value: the same promise under its other name."""

    async def invalidate_targets(
        self,
        targets: Sequence[Target],
        tenant_id: Id | None = None,
        *,
        all_contexts: bool = False,
        wait: str | None = None,
    ) -> Receipt:
        """Several targets of one tenant, and their cascades, in one atomic step."""
        check_wait(wait)
        parts = self._live()
        if not targets:
            raise ValueError("nothing to invalidate: no targets")
        tenant = tenant_of(targets[0].data_type, tenant_id)
        plan = parts.planner.targets(targets, tenant, all_contexts=all_contexts)
        return await parts.writer.invalidate(plan, wait=bool(wait))

    async def invalidate_scope(
        self,
        tenant_id: Id | None = None,
        data_type: str | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        wait: str | None = None,
    ) -> Receipt:
        """All of a tenant, or of one of its data types; either narrowed by at most one context id."""
        check_wait(wait)
        parts = self._live()
        tenant = tenant_of(data_type, tenant_id)
        contexts = agent_id, conversation_id, collection_id
        return await parts.writer.invalidate(parts.planner.scope(tenant, data_type, contexts), wait=bool(wait))

    async def invalidate_tags(
        self, tags: Sequence[str], tenant_id: Id | None = None, *, wait: str | None = None
    ) -> Receipt:
        """All values of a tenant that were stored with any of these tags."""
        check_wait(wait)
        parts = self._live()
        if isinstance(tags, str) or not tags:
            raise ValueError("tags must be a non-empty sequence of strings")
        plan = parts.planner.tags(tenant_of(None, tenant_id), tags)
        return await parts.writer.invalidate(plan, wait=bool(wait))

    def write_guard(
        self,
        targets: Sequence[Sequence[Any]] = (),
        tenant_id: Id | None = None,
        *,
        scopes: Sequence[str | Mapping[str, Any]] = (),
        tags: Sequence[str] = (),
        contexts: str = "exact",
        timeout_s: float | None = None,
        db_timeout_s: float | None = None,
        wait: str | None = None,
    ) -> WriteGuard:
        """Guard a database's write: `async with cache.write_guard([("config", "x")], "acme", db_timeout_s=5):`.

        Killed anywhere in the block, the process leaves no stale value behind the guard's time-out. `targets`: data
        type, resource id ("*": all of the type) and, if need be, agent, conversation and collection id; cascades are
        followed. `scopes`: data types, or mappings of `data_type` and a context id. In the block nothing of it is
        cached anywhere, and a `set` of it stores nothing (`receipt.stored` is False). Leaving the block in order
        invalidates, like `invalidate` with this `wait`: `guard.receipt`. Leaving it by an exception or a cancellation
        leaves the guard to its time-out.

        `db_timeout_s` (or the setting): how long the database lets a transaction live. `timeout_s` is counted from the
        beginning of the block and must exceed it, by as much as passes before the transaction begins. `ConfigError`
        where the times don't fit, `InvalidationFailed` on entering when the guard is not sure to stand.
        """
        check_wait(wait)
        check_contexts(contexts)
        parts = self._live()
        if not targets and not scopes and not tags:
            raise ValueError("nothing to guard: no targets, scopes or tags")
        if isinstance(tags, str) or isinstance(scopes, str | Mapping):
            raise ValueError("tags and scopes must be sequences")
        tenant = tenant_of(targets[0][0] if targets else None, tenant_id)
        plan = parts.planner.guarded(targets, tenant, scopes, tags, all_contexts=contexts == "all")
        largest_bound_s = parts.node.largest[plan.shard].bound_ms / 1000
        time_s = guard_time_s(self.settings, timeout_s, db_timeout_s, largest_bound_s)
        return WriteGuard(
            parts.writer, parts.guards, plan, time_s, self._clock, wait=bool(wait), enabled=self.settings.enabled
        )

    # -- counters -------------------------------------------------------------------------------------------------

    async def increment(
        self,
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
        """Add to a counter in L2, of 64 bits, and give its value. 0 reads it. It expires if `expires_in_s` says so.

        With a `request_id` (an id like any other) a repetition within 60 s, and while the counter lives, adds nothing.
        `L2Unavailable` leaves open whether it counted. `ValueError` for an amount that is no int, or that would carry
        it beyond 64 bits.
        """
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"a counter takes an int, not {type(value).__name__}")
        value = int.__int__(value)  # what a subclass holds, however it writes or compares itself
        if not -INT64 <= value < INT64:
            raise ValueError(f"a counter takes amounts of 64 bits, not {value.bit_length()} bits")
        parts = self._live()
        resource = "*" if resource_id is None else resource_id
        key = parts.naming.key(counter_type, resource, tenant_id, agent_id, conversation_id, collection_id)
        expires = None if expires_in_s is None else check_ttl(expires_in_s)
        if not self.settings.enabled:
            return 0
        request = "" if request_id is None else check_part("request_id", request_id)
        return await parts.writer.count(key, value, request, expires)
