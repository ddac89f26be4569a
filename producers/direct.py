"""Invalidations straight to L2, for write paths that read nothing: the same scripts, no memory, no subscription."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from cachebus.cascade import Cascade, CascadeTable, Target
from cachebus.clock import monotonic
from cachebus.confirm import Confirmed, Confirmer, Watch, check_wait
from cachebus.errors import ConfigError, InvalidationFailed, L2Unavailable
from cachebus.factory import redis_store, route_of
from cachebus.keys import Keyspace
from cachebus.naming import check_contexts, tenant_of
from cachebus.plan import Plan, Planner, coordinated, target
from cachebus.ports import Caller, Place, Store
from cachebus.receipt import Receipt
from cachebus.settings import Settings

Id = str | int
_NOBODY = Caller("", 0, b"")


class DirectProducer:
    """`async with DirectProducer.open(url) as producer: await producer.invalidate("agent_config", "a7", "acme")`.

    Namespace and shard count must be those of the caches. Each call is one atomic step in L2 and returns its receipt,
    or raises `InvalidationFailed` when it is not sure to have happened. A lost connection is reopened by the next call.
    """

    def __init__(self, settings: Settings | str | None = None, cascades: Iterable[Cascade] = ()) -> None:
        self.settings = Settings.of(settings)
        if self.settings.url.get_secret_value().startswith("memory://"):
            raise ConfigError("a producer needs a shared store: memory:// is inside one process")
        self._planner = Planner(Keyspace(self.settings.shards), CascadeTable(cascades))
        self._store: Store | None = None
        self._watches = [Watch() for _ in range(self.settings.shards)]

    @classmethod
    def open(cls, settings: Settings | str | None = None, cascades: Iterable[Cascade] = ()) -> Self:
        """A producer for the store at a URL or of settings, to be entered; `ConfigError`."""
        return cls(settings, cascades)

    async def __aenter__(self) -> Self:
        store = redis_store(self.settings, route_of(self.settings, monotonic), monotonic)
        try:
            await store.connect()
            # Refused here, if at all: where the caches have another number of shards, what this producer says of most
            # tenants would go to shards that nobody reads, which have nothing that could refuse it.
            await store.probe(0, _NOBODY, marks=False)
        except BaseException:
            await store.close()
            raise
        self._store = store
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give the connection back. Closing twice is harmless."""
        store, self._store = self._store, None
        if store is not None:
            await store.close()

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
        """As `Cache.invalidate`: one resource and its cascades.

        A producer that has just opened has yet to learn which nodes there are: its first `wait="nodes"` on a shard
        lasts the whole staleness bound, which its settings must share with the caches'.
        """
        check_contexts(contexts, agent_id, conversation_id, collection_id)
        one = Target(data_type, resource_id, agent_id, conversation_id, collection_id)
        tenant = tenant_of(data_type, tenant_id)
        return await self._send(self._planner.targets([one], tenant, all_contexts=contexts == "all"), wait)

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
        """As `Cache.invalidate_scope`: a tenant or one of its types, narrowed by at most one context id."""
        contexts = agent_id, conversation_id, collection_id
        return await self._send(self._planner.scope(tenant_of(data_type or "", tenant_id), data_type, contexts), wait)

    async def invalidate_tags(
        self, tags: Sequence[str], tenant_id: Id | None = None, *, wait: str | None = None
    ) -> Receipt:
        """As `Cache.invalidate_tags`."""
        if isinstance(tags, str) or not tags:
            raise ValueError("tags must be a non-empty sequence of strings")
        return await self._send(self._planner.tags(tenant_of("", tenant_id), tags), wait)

    async def invalidate_coordinated(
        self,
        tenant_id: Id,
        primary_data_type: str,
        primary_resource_id: Id,
        related_invalidations: Sequence[Mapping[str, Any]] | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        wait: str | None = None,
    ) -> Receipt:
        """As the function of this name in `cachebus`; the counts are the receipt's `targets`."""
        contexts = agent_id, conversation_id, collection_id
        primary = target(primary_data_type, primary_resource_id, contexts)
        targets = coordinated(primary, related_invalidations or (), contexts)
        return await self._send(self._planner.targets(targets, tenant_id, all_contexts=True), wait)

    async def _send(self, plan: Plan, wait: str | None) -> Receipt:
        check_wait(wait)
        store = self._store
        if store is None:
            raise ConfigError("this producer is not open: use it inside `async with DirectProducer.open(...)`")
        body = plan.body("", probe=bool(wait))
        try:
            await store.connect()
            change = await store.invalidate(plan.shard, _NOBODY, plan.keys, plan.names, body)
        except L2Unavailable as error:
            raise InvalidationFailed(f"the invalidation is not sure to have happened: {error}") from error
        nodes = Confirmed()
        if wait:
            confirmer = Confirmer(store, monotonic, self.settings.staleness_bound_s, self._watches)
            nodes = await confirmer.wait(plan.shard, Place(change.epoch, change.seq), lambda: _NOBODY)
        return Receipt(
            plan.shard, change.epoch.decode(), change.seq, targets=dict(plan.targets),
            confirmed=nodes.confirmed, lapsed=nodes.lapsed,
        )  # fmt: skip
