"""The same for sync code: the verbs without `await`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id
from cachebus.producers.base import Order, Orders, handed_on
from cachebus.producers.outbox.connections import Row, in_parts, writer
from cachebus.producers.outbox.producer import Outbox
from cachebus.receipt import Receipt


class SyncProducer(ABC):
    """The verbs of a `Producer` for code that does not await."""

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
    ) -> Receipt:
        """As `Cache.invalidate`: one resource and its cascades."""
        return self._send(
            self._orders.invalidate(
                data_type, resource_id, tenant_id, contexts, agent_id, conversation_id, collection_id
            ),
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
    ) -> Receipt:
        """As `Cache.invalidate_scope`: a tenant or one of its types, narrowed by at most one context id."""
        order = self._orders.scope(tenant_id, data_type, agent_id, conversation_id, collection_id)
        return self._send(order, wait)

    def invalidate_tags(self, tags: Sequence[str], tenant_id: Id | None = None, *, wait: Wait | None = None) -> Receipt:
        """As `Cache.invalidate_tags`."""
        return self._send(self._orders.tags(tags, tenant_id), wait)

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
    ) -> Receipt:
        """As the function of this name in `cachebus`; the counts are the receipt's `targets`."""
        order = self._orders.coordinated(
            tenant_id,
            primary_data_type,
            primary_resource_id,
            related_invalidations,
            agent_id,
            conversation_id,
            collection_id,
        )
        return self._send(order, wait)

    @abstractmethod
    def _send(self, order: Order, wait: Wait | None) -> Receipt:
        """Hand it on."""


class SyncOutboxProducer(SyncProducer):
    """`SyncOutboxProducer(session, outbox).invalidate("agent_config", "a7", "acme")`, and the caller commits.

    `connection`: a Session or Connection of SQLAlchemy's, a connection of psycopg's, or any DB-API connection to
    PostgreSQL; `paramstyle` for one that does not tell its own ("format" for Django's). All else as `OutboxProducer`.
    """

    def __init__(self, connection: Any, outbox: Outbox | None = None, *, paramstyle: str | None = None) -> None:
        self._outbox = outbox or Outbox()
        self._orders = self._outbox.orders
        self._connection = connection
        self._write = writer(connection, paramstyle)

    @contextmanager
    def together(self) -> Iterator[SyncProducer]:
        """`with producer.together() as several:` what is said of `several` becomes one INSERT at the end of the block,
        and nothing if the block fails."""
        rows: list[Row] = []
        yield _Together(self._outbox, rows)
        self._written(rows)

    def _send(self, order: Order, wait: Wait | None) -> Receipt:
        receipt = handed_on(order.plan, wait)
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
        receipt = handed_on(order.plan, wait)
        self._rows.append(self._outbox.row(order))
        return receipt
