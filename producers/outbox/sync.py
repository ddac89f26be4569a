"""The outbox producer for sync code: the verbs without `await`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id
from cachebus.producers.base import Order, Orders, receipt_for_command
from cachebus.producers.outbox.connections import Paramstyle, Row, in_parts, writer
from cachebus.producers.outbox.producer import Outbox, outbox_of
from cachebus.receipt import Receipt


class SyncProducer(ABC):
    """The verbs of a `Producer` for code that does not await. `wait` must be None."""

    _orders: Orders

    def invalidate(
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
        return self._send(
            self._orders.invalidate(
                data_type, resource_id, tenant_id, contexts, agent_id, conversation_id, collection_id
            ).because(reason),
            wait,
        )

    def invalidate_scope(
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
        return self._send(order.because(reason), wait)

    def invalidate_tags(
        self, tags: Sequence[str], tenant_id: Id | None = None, *, wait: Wait | None = None, reason: str | None = None
    ) -> Receipt:
        """Say that all values of a tenant are replaced that were stored with any of these tags.

        `tags`: a sequence of strings that is not empty (`ValueError`). No cascades are followed. Returns and raises
        what `invalidate` does.
        """
        return self._send(self._orders.tags(tags, tenant_id).because(reason), wait)

    def invalidate_coordinated(
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
        return self._send(order.because(reason), wait)

    @abstractmethod
    def _send(self, order: Order, wait: Wait | None) -> Receipt:
        """Hand the order's command on; returns the receipt."""


class SyncOutboxProducer(SyncProducer):
    """`SyncOutboxProducer(session, outbox).invalidate("agent_config", "a7", "acme")`, and the caller commits.

    Each call is one INSERT in the caller's transaction. It differs from `OutboxProducer` in its connections only.
    """

    def __init__(self, connection: Any, outbox: Outbox | None = None, *, paramstyle: Paramstyle | None = None) -> None:
        """`connection`: a Session or Connection of SQLAlchemy, a connection of psycopg or sqlite3, or any DB-API
        connection to PostgreSQL. `outbox`: as of `OutboxProducer`. `paramstyle`: for a DB-API connection whose module
        does not declare it ("format" for Django). Raises `ConfigError` for any other connection,
        and for what is no `Outbox`."""
        self._outbox = outbox_of(outbox)
        self._orders = self._outbox.orders
        self._connection = connection
        self._write = writer(connection, paramstyle)

    @contextmanager
    def together(self) -> Iterator[SyncProducer]:
        """Write several commands by one INSERT: `with producer.together() as several: several.invalidate(...)`.

        They are written at the end of the block, and not at all if the block raises.
        """
        rows: list[Row] = []
        yield _Together(self._outbox, rows)
        self._written(rows)

    def _send(self, order: Order, wait: Wait | None) -> Receipt:
        receipt = receipt_for_command(order.plan, wait)
        self._written([self._outbox.row(order)])
        return receipt

    def _written(self, rows: Sequence[Row]) -> None:
        for part in in_parts(rows):
            self._write(self._connection, self._outbox.insert, part)


class _Together(SyncProducer):
    """Gathers the rows."""

    def __init__(self, outbox: Outbox, rows: list[Row]) -> None:
        self._orders, self._outbox, self._rows = outbox.orders, outbox, rows

    def _send(self, order: Order, wait: Wait | None) -> Receipt:
        receipt = receipt_for_command(order.plan, wait)
        self._rows.append(self._outbox.row(order))
        return receipt
