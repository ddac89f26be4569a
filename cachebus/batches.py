"""The verbs of `Cache` for many ids at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id, several
from cachebus.base.parameters import SourceFunction
from cachebus.base.pieces import in_turns
from cachebus.calls import as_target, set_request
from cachebus.cascade import Target
from cachebus.decided import Answer, Decided
from cachebus.keys.key import Key
from cachebus.keys.naming import check_contexts
from cachebus.keys.plan import STEP_MAX, target
from cachebus.many import Common, HowToLoad, from_memory, in_order, keys_of, load_keys, read_keys
from cachebus.receipt import Receipt
from cachebus.writes import Writes
from cachebus.writing.confirm import check_wait

T = TypeVar("T")
IdT = TypeVar("IdT", bound=Id)
TargetT = TypeVar("TargetT", bound=tuple[Any, ...])


class Batches(Writes):
    """What every cache has for many ids at once; what its verbs have in common is told at `Cache`."""

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
        parts, ids = self._live(), several("resource_ids", resource_ids)
        common = Common(data_type, tenant_id, (agent_id, conversation_id, collection_id))
        found: dict[Id, Any] = {}
        remaining = await from_memory(parts, common, ids, found) if after is None else [(one, "") for one in ids]
        if not remaining:
            return found
        found.update(await read_keys(parts, await keys_of(parts, common, remaining), after))
        return in_order(ids, found)

    async def get_targets(
        self, targets: Iterable[TargetT], tenant_id: Id | None = None, *, after: Receipt | str | None = None
    ) -> dict[TargetT, Any]:
        """Read several values of one tenant, of whatever types; as `get_many`.

        - `targets`: data type, resource id and, if need be, agent, conversation and collection id: `("product", 7)`, or
          a `Target`

        Returns the values by the targets asked, absent ones left out. Raises what `get` does; `ValueError` for what is
        no target.
        """
        parts, asked = self._live(), several("targets", targets)

        def key_of(one: TargetT) -> Key:
            data_type, resource_id, *contexts, _ = as_target(one)
            if not isinstance(one, Hashable):
                raise ValueError(f"get_targets gives values by their targets: take tuples, not a {type(one).__name__}")
            return parts.naming.key(data_type, resource_id, tenant_id, *contexts)

        keys = dict(zip(asked, await in_turns(asked, key_of), strict=True))
        return in_order(keys, await read_keys(parts, keys, after))

    @overload
    async def get_or_load_many(
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
    async def get_or_load_many(
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
    async def get_or_load_many(
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
    async def get_or_load_many(
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
        """Read several values of one type, and load those that are missing: each id by one load at a time on this node,
        and by one over all nodes, as `get_or_load` does.

        - `loader`: a function, sync or async, called with a list of the ids that are missing, as given, where that of
          `get_or_load` is given one; with up to 250. It returns a mapping of these ids to their values. Ids that it
          leaves out, or gives None for, are not found; an exception in the place of a value fails that id alone. Ids
          count by the text that stands for them: 7 answers "7"
        - `tags`: of each of them
        - all else: as in `get_or_load`

        Ids that others load already are not asked for again. Where another node loads some of them, the rest is loaded
        meanwhile. More than 250 ids go 250 after 250.

        Returns the values by the ids asked; those that the source has not are left out, a None that was stored is not.
        Raises what `get_or_load` does, once all loads have ended: what was loaded of the others is kept. `ConfigError`
        for a loader that gives no mapping, or ids that it was not asked for.
        """
        parts, ids = self._live(), several("resource_ids", resource_ids)
        common = Common(data_type, tenant_id, (agent_id, conversation_id, collection_id))
        found: dict[Id, Any] = {}
        if use_memory and after is None:
            remaining = await from_memory(parts, common, ids, found)
        else:
            remaining = [(one, "") for one in ids]
        if not remaining:
            return found
        keys = await keys_of(parts, common, remaining)
        how = HowToLoad(loader, search_hierarchy, ttl, tags, after, use_memory)
        found.update(await load_keys(parts, common, keys, how))
        return in_order(ids, found)

    async def set_many(
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
        """Store several values of one type, as `set` does each: one round trip for 250 of them. Each is stored by
        itself, so they are not all there at one moment.

        - `values`: by their resource ids
        - `tags`: of each of them

        Returns one receipt: that of the last write, which stands for all. Raises what `set` does: for a bad id, or a
        value that can't be stored, before anything is written; `L2Unavailable` where any is not sure to be stored: the
        others of its 250 may be, and what comes behind is not written. To call it again is safe. `ValueError` where
        there are none.
        """
        check_wait(wait)
        parts = self._live()
        if not values:
            raise ValueError("nothing to store: no values")
        common = Common(data_type, tenant_id, (agent_id, conversation_id, collection_id))
        requests = await in_turns(
            list(values.items()), lambda one: set_request(parts, common.key(parts, one[0]), one[1], ttl, tags)
        )
        return await parts.writer.set_many(requests, wait=bool(wait))

    async def invalidate_many(
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
        """Invalidate several resources of one type, and their cascades, in one atomic step; see `invalidate`. Of
        several types: `invalidate_targets`.

        Returns the receipt. Raises what `invalidate` does; `ValueError` where there are none, or more than one step
        takes: 10,000 keys and scopes.
        """
        check_wait(wait)
        check_contexts(contexts, agent_id, conversation_id, collection_id)
        around = agent_id, conversation_id, collection_id
        asked = several("resource_ids", resource_ids, at_most=STEP_MAX + 1)
        targets: list[Target] = [target(data_type, one, around) for one in asked]
        return await self.invalidate_targets(targets, tenant_id, contexts=contexts, wait=wait, reason=reason)
