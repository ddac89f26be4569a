"""The verbs of `Cache` that write: each checks its arguments, and hands what they mean to the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachebus.assembly.lifecycle import Life
from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id, check_part, several
from cachebus.base.pieces import in_turns
from cachebus.calls import Guarding, as_target, checked_amount, checked_ttl, guard, invalidate_plans, set_request
from cachebus.cascade import Target
from cachebus.keys.naming import check_contexts
from cachebus.keys.plan import STEP_MAX, too_many
from cachebus.receipt import Receipt
from cachebus.writing.confirm import check_wait
from cachebus.writing.guard import WriteGuard


class Writes(Life):
    """What every cache has to write with; what its verbs have in common is told at `Cache`."""

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
        return await parts.writer.set(set_request(parts, key, value, ttl, tags)._replace(wait=bool(wait)))

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

        `ttl` stands before `tenant_id` here, as existing callers of `set_if_not_exists` give them: better name both.

        Good for "do this once" and job marks; not a lock to build correctness on, since a failover, an eviction or an
        invalidation frees it.

        Returns whether it was stored; True in a disabled cache: with nothing cached, no value is in the way. Raises
        what `set` does.
        """
        parts = self._live()
        key = parts.naming.key(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
        receipt = await parts.writer.set(set_request(parts, key, value, ttl, tags)._replace(if_absent=True))
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
        reason: str | None = None,
    ) -> Receipt:
        """Say that what is cached for a resource is replaced, everywhere; cascades are followed.

        - `resource_id`: "*" is all of the data type
        - `contexts`: "exact" is this key; "all", without a context id, is the resource id in every context
        - `wait`: "nodes" returns when every node has applied it, which takes about as long as an event, or has lost its
          lease, at most the staleness bound. The receipt names both, and no read that begins after that gives what was
          replaced
        - `reason`: why, in 1 to 200 characters, for who looks at `cachebus log` or `tail` later: "price import 17"

        Returns the receipt. With `pending_max` in the settings the invalidation may wait in memory for L2: the
        receipt's `status` is then "pending", whatever `wait` says. Raises `InvalidationFailed` when it is not sure to
        have happened: repeat it then.
        """
        check_wait(wait)
        check_contexts(contexts, agent_id, conversation_id, collection_id)
        parts = self._live()
        key = parts.naming.named(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
        plan = parts.planner.one(key, all_contexts=contexts == "all").because(reason)
        return await parts.writer.invalidate(plan, wait=bool(wait))

    delete = invalidate
    """Remove a value: `invalidate` by its other name."""

    async def invalidate_targets(
        self,
        targets: Sequence[Target | tuple[Any, ...]],
        tenant_id: Id | None = None,
        *,
        contexts: ContextMatch = "exact",
        wait: Wait | None = None,
        reason: str | None = None,
    ) -> Receipt:
        """Invalidate several resources of one tenant, and their cascades, in one atomic step; see `invalidate`.

        - `targets`: each a `Target`, or data type, resource id ("*": all of the type) and, if need be, agent,
          conversation and collection id: `("product", 7)`
        - `contexts`: "exact" is each target's own key; "all": one without a context id means its id in every context

        One step takes up to 10,000 keys and scopes, those of cascades included; `contexts="all"` makes two of an id.
        Up to 500 targets are always taken. `ValueError` for more: better invalidate a scope, or a tag.
        """
        check_wait(wait)
        check_contexts(contexts)
        parts = self._live()
        asked = several("targets", targets)
        if not asked:
            raise ValueError("nothing to invalidate: no targets")
        if len(asked) > STEP_MAX:
            raise too_many()
        named = await in_turns(asked, lambda one: as_target(one).in_text())
        tenant = parts.naming.tenant_of(named[0].data_type, tenant_id)
        plan = await parts.planner.many_targets(named, tenant, all_contexts=contexts == "all")
        plan.because(reason)
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
        reason: str | None = None,
    ) -> Receipt:
        """Invalidate all of a tenant, or of one of its data types; either narrowed by at most one context id. See
        `invalidate`."""
        check_wait(wait)
        parts = self._live()
        tenant = parts.naming.tenant_of(data_type, tenant_id)
        contexts = agent_id, conversation_id, collection_id
        plan = parts.planner.scope(tenant, data_type, contexts).because(reason)
        return await parts.writer.invalidate(plan, wait=bool(wait))

    async def invalidate_tags(
        self, tags: Sequence[str], tenant_id: Id | None = None, *, wait: Wait | None = None, reason: str | None = None
    ) -> Receipt:
        """Invalidate all values of a tenant that were stored with any of these tags; see `invalidate`."""
        check_wait(wait)
        parts = self._live()
        plan = parts.planner.tags(parts.naming.tenant_of(None, tenant_id), tags).because(reason)
        return await parts.writer.invalidate(plan, wait=bool(wait))

    async def invalidate_type(self, data_type: str, *, wait: Wait | None = None, reason: str | None = None) -> Receipt:
        """Invalidate a data type over all tenants, however many there are, in one step of each shard: atomic in each,
        not over shards.

        Returns a receipt of several shards. Raises `InvalidationFailed` where it is not sure to have happened in any of
        them; the others are done, and `receipt` of the error names both. See `invalidate`.
        """
        check_wait(wait)
        parts = self._live()
        return await invalidate_plans(parts, parts.planner.type_of_all_tenants(data_type), wait, reason)

    async def clear(self, *, wait: Wait | None = None, reason: str | None = None) -> Receipt:
        """Invalidate everything in the namespace but counters; as `invalidate_type`."""
        check_wait(wait)
        parts = self._live()
        return await invalidate_plans(parts, parts.planner.everything(), wait, reason)

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
        reason: str | None = None,
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
        - `contexts`, `wait`, `reason`: as in `invalidate`

        Returns the guard, to be entered. Raises `ConfigError` where the times don't fit; `InvalidationFailed` on
        entering when the guard is not sure to stand.
        """
        return guard(
            self._live(), Guarding(targets, tenant_id, scopes, tags, contexts, timeout_s, db_timeout_s, wait, reason)
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
