"""`Cache`: the public verbs. A hit is written out in the verbs that read; everything else is a call below.

The hit stands in three places: twice here, and in `cachebus.helpers.get_with_cache_aside`. One function for all three
would make each hit 7 to 13 % slower (measured), so it is one text between its markers, which a test compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cachebus import context
from cachebus.assembly.lifecycle import Life
from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id, check_part
from cachebus.base.parameters import Source
from cachebus.calls import Guarding, Storing, checked_amount, checked_ttl, guard, invalidate_plans, read_many, store
from cachebus.cascade import Target
from cachebus.keys.key import Key
from cachebus.keys.naming import check_contexts, tag_scopes
from cachebus.reading.fetch import MISSING, NOT_FOUND
from cachebus.reading.request import Request
from cachebus.reading.source import bind, load_of
from cachebus.receipt import Receipt, position_of
from cachebus.writing.confirm import check_wait
from cachebus.writing.guard import WriteGuard


class Cache(Life):
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
            now = self._clock()
            # hit: serve
            group = entry.group
            if now < entry.fast_until and now < group.valid_until:
                group.hits += 1
                if entry.freq < 3:
                    entry.freq += 1
                # hit: end
                return entry.value
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id, name=name)
        position = None if after is None else position_of(after, key.shard)
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
        """Read several values of one type; one round trip for all of 250 that L1 lacks. More are asked for 250 after
        250, and are not what L2 held at one moment.

        Returns the values by the ids asked, absent ones left out. Raises what `get` does.
        """
        parts = self._live()

        def key_of(one: Id) -> Key:
            return parts.naming.key(data_type, one, tenant_id, agent_id, conversation_id, collection_id)

        return await read_many(parts.reader, resource_ids, key_of, after)

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
        """Read a value, or load it: one load a key at a time on this node, and one over all nodes.

        - `loader`: a function, sync or async. Its parameters `resource_id`, `tenant_id` and `ctx` (the surrounding
          `Context`) get these as given; its others without a default get what is left of the three. None: not found
        - `ttl`, `tags`: count for the load that makes the value; on a hit they are ignored
        - `search_hierarchy`, `use_memory`: as in `get`

        Returns the value, or None. Without L2 the source is asked, and its answer kept for the staleness bound. Raises
        what the loader raises after its type's retries; `LoadTimeout` when it takes too long; `ConfigError` for a
        loader that needs other arguments, gives an iterator, or waits for itself.
        """
        # As in `get`.
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
            now = self._clock()
            # hit: serve
            group = entry.group
            if now < entry.fast_until and now < group.valid_until:
                group.hits += 1
                if entry.freq < 3:
                    entry.freq += 1
                # hit: end
                return entry.value
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id, name=name)
        rules = parts.policies.rules(key.family.data_type)
        tenant = key.family.tenant or None if tenant_id is None else tenant_id
        load = load_of(bind(loader, resource_id, tenant, context.current()), rules)
        ttl_s, position = checked_ttl(ttl), position_of(after, key.shard)
        request = Request(key, load, rules, position, search_hierarchy, ttl_s, tag_scopes(key, tags, rules), use_memory)
        return (await parts.loads.get_or_load(request)).value

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
        wait: Wait | None = None,
    ) -> Receipt:
        """Store a value here and in L2, and replace what other nodes hold.

        Returns the receipt of the write. Raises `NotSerializable`, `ValueTooLarge`, `L2Unavailable`.
        """
        check_wait(wait)
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
        return await store(parts, Storing(key, value, ttl, tags, wait=wait))

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
        """Store a value only where there is none; atomic in L2.

        Good for "do this once" and job marks; not a lock to build correctness on, since a failover, an eviction or an
        invalidation frees it.

        Returns whether it was stored; True in a disabled cache: with nothing cached, no value is in the way. Raises
        what `set` does.
        """
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
        receipt = await store(parts, Storing(key, value, ttl, tags, if_absent=True))
        return receipt.stored or not self.settings.enabled

    async def invalidate(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        contexts: ContextMatch = "exact",
        wait: Wait | None = None,
    ) -> Receipt:
        """Say that what is cached for a resource is replaced, everywhere; cascades are followed.

        - `resource_id`: "*" is all of the data type
        - `contexts`: "exact" is this key; "all", without a context id, is the resource id in every context
        - `wait`: "nodes" returns when every node has applied it, which takes about as long as an event, or has lost its
          lease, at most the staleness bound. The receipt names both, and no read that begins after that gives what was
          replaced

        Returns the receipt. With `pending_max` in the settings the invalidation may wait in memory for L2: the
        receipt's `status` is then "pending", whatever `wait` says. Raises `InvalidationFailed` when it is not sure to
        have happened: repeat it then.
        """
        check_wait(wait)
        check_contexts(contexts, agent_id, conversation_id, collection_id)
        parts = self._live()
        key = parts.naming.named(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
        return await parts.writer.invalidate(parts.planner.one(key, all_contexts=contexts == "all"), wait=bool(wait))

    delete = invalidate
    """Remove a value: `invalidate` by its other name."""

    async def invalidate_targets(
        self,
        targets: Sequence[Target],
        tenant_id: Id | None = None,
        *,
        all_contexts: bool = False,
        wait: Wait | None = None,
    ) -> Receipt:
        """Invalidate several resources of one tenant, and their cascades, in one atomic step; see `invalidate`.

        - `all_contexts`: a target without a context id means its id in every context
        """
        check_wait(wait)
        parts = self._live()
        if not targets:
            raise ValueError("nothing to invalidate: no targets")
        tenant = parts.naming.tenant_of(targets[0].data_type, tenant_id)
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
        wait: Wait | None = None,
    ) -> Receipt:
        """Invalidate all of a tenant, or of one of its data types; either narrowed by at most one context id. See
        `invalidate`."""
        check_wait(wait)
        parts = self._live()
        tenant = parts.naming.tenant_of(data_type, tenant_id)
        contexts = agent_id, conversation_id, collection_id
        return await parts.writer.invalidate(parts.planner.scope(tenant, data_type, contexts), wait=bool(wait))

    async def invalidate_tags(
        self, tags: Sequence[str], tenant_id: Id | None = None, *, wait: Wait | None = None
    ) -> Receipt:
        """Invalidate all values of a tenant that were stored with any of these tags; see `invalidate`."""
        check_wait(wait)
        parts = self._live()
        if isinstance(tags, str) or not tags:
            raise ValueError("tags must be a non-empty sequence of strings")
        plan = parts.planner.tags(parts.naming.tenant_of(None, tenant_id), tags)
        return await parts.writer.invalidate(plan, wait=bool(wait))

    async def invalidate_type(self, data_type: str, *, wait: Wait | None = None) -> Receipt:
        """Invalidate a data type over all tenants, however many there are, in one step of each shard: atomic in each,
        not over shards.

        Returns a receipt of several shards. Raises `InvalidationFailed` where it is not sure to have happened in any of
        them; the others are done, and `receipt` of the error names both. See `invalidate`.
        """
        check_wait(wait)
        parts = self._live()
        return await invalidate_plans(parts, parts.planner.type_of_all_tenants(data_type), wait)

    async def clear(self, *, wait: Wait | None = None) -> Receipt:
        """Invalidate everything in the namespace but counters; as `invalidate_type`."""
        check_wait(wait)
        parts = self._live()
        return await invalidate_plans(parts, parts.planner.everything(), wait)

    def write_guard(
        self,
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
        """Guard a database's write: `async with cache.write_guard([("config", "x")], "acme", db_timeout_s=5):`.

        In the block nothing of it is cached anywhere, and a `set` of it stores nothing. Leaving the block in order
        invalidates: `guard.receipt`. Leaving it by an exception or a cancellation leaves the guard to its time-out, and
        so does the death of the process, which leaves no stale value behind it.

        - `targets`: data type, resource id ("*": all of the type) and, if need be, agent, conversation and collection
          id; cascades are followed
        - `scopes`: data types, or mappings of `data_type` and a context id
        - `db_timeout_s`: how many seconds the database lets a transaction live; None is the setting's
        - `timeout_s`: seconds from the beginning of the block. It must exceed `db_timeout_s`, by as much as passes
          before the transaction begins; None is long enough for the database and the staleness bound
        - `contexts`, `wait`: as in `invalidate`

        Returns the guard, to be entered. Raises `ConfigError` where the times don't fit; `InvalidationFailed` on
        entering when the guard is not sure to stand.
        """
        return guard(self._live(), Guarding(targets, tenant_id, scopes, tags, contexts, timeout_s, db_timeout_s, wait))

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
        """Add to a counter in L2, of 64 bits, signed.

        - `value`: the amount; 0 reads the counter
        - `expires_in_s`: seconds from now until the counter ends; None leaves that as it is
        - `request_id`: an id of the call. A repetition within 60 s, and while the counter lives, adds nothing

        Returns the new value; 0 in a disabled cache. Raises `L2Unavailable`, which leaves open whether it counted;
        `ValueError` for an amount that is no int, or that would carry the counter beyond 64 bits.
        """
        amount = checked_amount(value)
        parts = self._live()
        resource = "*" if resource_id is None else resource_id
        key = parts.naming.named(counter_type, resource, tenant_id, agent_id, conversation_id, collection_id)
        expires = checked_ttl(expires_in_s)
        if not self.settings.enabled:
            return 0
        request = "" if request_id is None else check_part("request_id", request_id)
        return await parts.writer.count(key, amount, request, expires)
