"""What caches were asked to invalidate, for tests that want to know whether a write path does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from cachebus.base.ids import Id
from cachebus.cache import Cache
from cachebus.cascade import WHOLE_SCOPE
from cachebus.keys.key import ALL_OF_SHARD, GIVEN
from cachebus.keys.naming import tag_scopes
from cachebus.keys.plan import Plan
from cachebus.threads import BlockingCache


class Invalidations:
    """What caches were asked to invalidate since `record_invalidations` began, in its order."""

    def __init__(self, cache: Cache) -> None:
        """`cache`: the open cache by whose settings and policies ids are read."""
        self._parts = cache._observed_parts()
        self._plans: list[Plan] = []

    def covers(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        tags: Sequence[str] = (),
    ) -> bool:
        """Whether a value of these ids, stored with these `tags` and those of its type, was invalidated: by its key, a
        cascade, a scope that it lies in, or a tag. `resource_id` "*": whether all of the type was. `InvalidKey`."""
        parts = self._parts
        key = parts.naming.named(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
        wanted = set(key.scopes)
        if key.resource_id != WHOLE_SCOPE:
            wanted |= {key.l1, *tag_scopes(key, tags, parts.policies.rules(key.family.data_type))}
        return any(wanted.intersection((*(one.l1 for one in each.keys), *each.scopes)) for each in self._plans)

    def assert_invalidated(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        tags: Sequence[str] = (),
    ) -> None:
        """`AssertionError`, which says what was invalidated, unless `covers` says that this was."""
        ids = data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id
        if not self.covers(*ids, tags=tags):
            raise AssertionError(f"{_shown(ids)} was not invalidated, but {self.described()}")

    def assert_not_invalidated(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        tags: Sequence[str] = (),
    ) -> None:
        """`AssertionError` where `covers` says that this was invalidated."""
        ids = data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id
        if self.covers(*ids, tags=tags):
            raise AssertionError(f"{_shown(ids)} was invalidated: {self.described()}")

    def described(self) -> str:
        """All of it in words, for people: they may change."""
        names = [name for plan in self._plans for name in (*map(repr, plan.keys), *map(_scope_shown, plan.scopes))]
        # Of several shards each has its own plan for what is of all tenants.
        return ", ".join(dict.fromkeys(names)) or "nothing"

    def __len__(self) -> int:
        """How many invalidations were asked for."""
        return len(self._plans)

    def __repr__(self) -> str:
        return f"<Invalidations: {self.described()}>"


@contextmanager
def record_invalidations(*caches: Cache | BlockingCache) -> Iterator[Invalidations]:
    """Record what these open caches are asked to invalidate: by `invalidate` and its like, by `delete`, and by write
    guards that are entered. A value that is `set` is none of it.

    - `caches`: several, such as `*fleet.caches`, tell into one record. A `BlockingCache` that is not open is opened

    Gives the `Invalidations`, also of a cache that is disabled. Raises `ConfigError` for a `Cache` that is not open,
    and `ValueError` for none.
    """
    if not caches:
        raise ValueError("no caches to record the invalidations of")
    there = [cache._at_hand() if isinstance(cache, BlockingCache) else cache for cache in caches]
    seen = Invalidations(there[0])
    with ExitStack() as stack:
        for cache in there:
            stack.enter_context(cache._observed_parts().writer.recorded_by(seen._plans.append))
        yield seen


def _shown(ids: tuple[Id | None, ...]) -> str:
    return "/".join(str(part) for part in ids if part is not None)


def _scope_shown(name: str) -> str:
    """A scope or tag as people read it."""
    shape, *parts = name.split(GIVEN)
    words = {"G": "tag ", "I": "in all contexts ", "T": "tenant ", ALL_OF_SHARD: "everything"}.get(shape, "all of ")
    return words + "/".join(parts)
