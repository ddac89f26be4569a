"""The interface of all producers: the verbs, validation, errors and receipts of a cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id, text_of
from cachebus.cascade import Cascade, CascadeTable, Target
from cachebus.keys.key import Keyspace
from cachebus.keys.naming import check_contexts, tenant_of
from cachebus.keys.plan import Plan, Planner, coordinated, target
from cachebus.producers.command import (
    Command,
    Invalidate,
    InvalidateCoordinated,
    InvalidateScope,
    InvalidateTags,
    related_of,
    with_reason,
)
from cachebus.receipt import Receipt, pending_receipt
from cachebus.settings import Settings
from cachebus.writing.confirm import check_wait

_NAMES = ("tenant_id", "data_type", "resource_id", "agent_id", "conversation_id", "collection_id")


class Order(NamedTuple):
    """What a verb asks for, validated as a cache validates it."""

    plan: Plan
    """For a producer that applies it."""
    command: Callable[[], Command]
    """Makes the command, for a producer that hands it on."""

    def because(self, reason: str | None) -> Order:
        """The same, with a reason if somebody gives one; `ValueError`."""
        plan, command = self.plan.because(reason), self.command
        return self if reason is None else Order(plan, lambda: with_reason(command(), reason))


class Orders:
    """Makes orders from the verbs' arguments. Wrong arguments raise the same errors as in a cache."""

    def __init__(self, shards: int, cascades: Iterable[Cascade] = (), default_tenant: str | None = None) -> None:
        self.planner = Planner(Keyspace(shards), CascadeTable(cascades))
        self._default_tenant = default_tenant

    def _tenant_of(self, data_type: object, tenant_id: Id | None) -> str | None:
        return tenant_of(data_type, tenant_id, self._default_tenant)

    def invalidate(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None,
        contexts: ContextMatch,
        agent_id: Id | None,
        conversation_id: Id | None,
        collection_id: Id | None,
    ) -> Order:
        """The order for one resource and its cascades."""
        ids = agent_id, conversation_id, collection_id
        check_contexts(contexts, *ids)
        one, tenant = Target(data_type, resource_id, *ids), self._tenant_of(data_type, tenant_id)
        plan = self.planner.targets([one], tenant, all_contexts=contexts == "all")
        return Order(
            plan,
            lambda: Invalidate(
                op="invalidate",
                related=related_of(self.planner.expand([one], tenant)[1:]),
                contexts=contexts,
                **_fields(tenant, data_type, resource_id, *ids),
            ),
        )

    def scope(
        self,
        tenant_id: Id | None,
        data_type: str | None,
        agent_id: Id | None,
        conversation_id: Id | None,
        collection_id: Id | None,
    ) -> Order:
        """The order for a tenant or one of its types, narrowed by at most one context id."""
        ids, tenant = (agent_id, conversation_id, collection_id), self._tenant_of(data_type, tenant_id)
        plan = self.planner.scope(tenant, data_type, ids)
        return Order(plan, lambda: InvalidateScope(op="scope", **_fields(tenant, data_type, None, *ids)))

    def tags(self, tags: Sequence[str], tenant_id: Id | None) -> Order:
        """The order for all values with one of these tags."""
        tenant = self._tenant_of(None, tenant_id)
        plan = self.planner.tags(tenant, tags)
        text = tuple(text_of("tag", tag) for tag in tags)
        return Order(plan, lambda: InvalidateTags(op="tags", tags=text, **_fields(tenant)))

    def coordinated(
        self,
        tenant_id: Id,
        data_type: str,
        resource_id: Id,
        related: Sequence[Mapping[str, Any]] | None,
        agent_id: Id | None,
        conversation_id: Id | None,
        collection_id: Id | None,
    ) -> Order:
        """The order for a resource and what is related to it, in one step."""
        ids = agent_id, conversation_id, collection_id
        targets = coordinated(target(data_type, resource_id, ids), related or (), ids)
        plan = self.planner.targets(targets, tenant_id, all_contexts=True)
        return Order(
            plan,
            lambda: InvalidateCoordinated(
                op="coordinated",
                related=related_of(self.planner.expand(targets, tenant_id)[1:]),
                **_fields(tenant_id, data_type, resource_id, *ids),
            ),
        )


def _fields(*ids: Id | None) -> dict[str, Any]:
    """The fields of a command, as text. Fields that are not given are left out of the JSON."""
    return {name: text_of(name, part) for name, part in zip(_NAMES, ids, strict=False) if part is not None}


class Producer(ABC):
    """Sends invalidations: `await producer.invalidate("agent_config", "a7", "acme")`.

    Ids are str, int or UUID. `tenant_id` comes from the argument, else from the surrounding `Context`, else it is
    `default_tenant`. With `wait="nodes"` a call returns when no node can serve what was replaced. That needs a producer
    that applies invalidations itself; others raise `ValueError`.
    """

    def __init__(self, settings: Settings, cascades: Iterable[Cascade] = ()) -> None:
        """`settings`: those of the caches. `cascades`: followed by every verb that names a resource. A producer that
        hands commands on puts what they add into the command."""
        self._orders = Orders(settings.shards, cascades, settings.default_tenant)

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
        """Say that what is cached for a resource is replaced, everywhere; cascades are followed. As `Cache.invalidate`.

        `contexts`: "exact" is this key alone; "all", without any context id, is the id in every context too. `wait`: as
        of the producer. `reason`: why, in 1 to 200 characters, for who looks at the log later. Returns the receipt.
        Raises `InvalidationFailed` when it is not sure to have happened: repeat it then; `InvalidKey`,
        `TenantRequired`, and `ValueError` for `contexts`, `wait` and `reason`.
        """
        order = self._orders.invalidate(
            data_type, resource_id, tenant_id, contexts, agent_id, conversation_id, collection_id
        )
        return await self._send(order.because(reason), wait)

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
        """Say that all of a tenant, or of one of its data types, is replaced, narrowed by at most one context id.

        No cascades are followed. Returns and raises what `invalidate` does.
        """
        order = self._orders.scope(tenant_id, data_type, agent_id, conversation_id, collection_id)
        return await self._send(order.because(reason), wait)

    async def invalidate_tags(
        self, tags: Sequence[str], tenant_id: Id | None = None, *, wait: Wait | None = None, reason: str | None = None
    ) -> Receipt:
        """Say that all values of a tenant are replaced that were stored with any of these tags.

        `tags`: a sequence of strings that is not empty (`ValueError`). No cascades are followed. Returns and raises
        what `invalidate` does.
        """
        return await self._send(self._orders.tags(tags, tenant_id).because(reason), wait)

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
        wait: Wait | None = None,
        reason: str | None = None,
    ) -> Receipt:
        """Say that a resource and what is related to it are replaced, in one atomic step; cascades are followed.

        `primary_resource_id`: "*" is the whole scope. `related_invalidations`: mappings of `data_type` and, if need be,
        `resource_id` (else the whole scope) and context ids (else the primary's). Returns the receipt, whose `targets`
        are the counts by data type. Raises what `invalidate` does, and `ValueError` for a mapping with other keys.
        """
        order = self._orders.coordinated(
            tenant_id,
            primary_data_type,
            primary_resource_id,
            related_invalidations,
            agent_id,
            conversation_id,
            collection_id,
        )
        return await self._send(order.because(reason), wait)

    @abstractmethod
    async def _send(self, order: Order, wait: Wait | None) -> Receipt:
        """Apply the order, or hand its command on; returns the receipt."""


def receipt_for_command(plan: Plan, wait: Wait | None) -> Receipt:
    """The pending receipt of a command that a worker will apply; `ValueError` if the caller asks to wait for that."""
    check_wait(wait)
    if wait:
        raise ValueError(f"wait={wait!r} is for those who apply it themselves (DirectProducer, Cache): others do here")
    return pending_receipt(plan.shard, dict(plan.targets))
