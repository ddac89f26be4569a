"""The outbox producer: invalidations are rows of the caller's own transaction, committed if, and only if, its write
is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from cachebus.base.choices import Wait
from cachebus.cascade import Cascade
from cachebus.errors import ConfigError, ValueTooLarge
from cachebus.producers.base import Order, Orders, Producer, receipt_for_command
from cachebus.producers.command import encode
from cachebus.producers.outbox.connections import Insert, Row, async_writer, in_parts
from cachebus.producers.outbox.table import DEFAULT, LARGEST_BYTES, OutboxTable
from cachebus.receipt import Receipt
from cachebus.settings import Settings


class Outbox:
    """What all producers of an outbox share: namespace, cascades and table. To be made once."""

    def __init__(
        self,
        settings: Settings | str | None = None,
        cascades: Iterable[Cascade] = (),
        *,
        table: str = DEFAULT,
        counts_rows: bool = True,
    ) -> None:
        """`settings`: a URL, settings, or None for the environment's; only `namespace`, `shards` and `default_tenant`
        matter: nothing is connected. `cascades`: what else is invalidated with a resource. `table`: "NAME" or
        "SCHEMA.NAME". `counts_rows`: whether producers raise where the database inserts fewer rows than they give it;
        False for a table with a trigger or a rule of its own that puts them elsewhere. Raises `ConfigError` for a table
        that is no plain name."""
        known = Settings.of(settings)
        self.namespace = known.namespace
        self.table = OutboxTable.of(table)
        self.orders = Orders(known.shards, cascades, known.default_tenant)
        self.insert = Insert(self.table.rows, counts_rows=counts_rows)

    def row(self, order: Order) -> Row:
        """The row for an order; `ValueTooLarge`."""
        command = encode(order.command())
        if len(command) > LARGEST_BYTES:
            raise ValueTooLarge(f"the command is {len(command)} bytes long, more than {LARGEST_BYTES}")
        return self.namespace, command.decode()


def outbox_of(given: Outbox | None) -> Outbox:
    """The outbox that was given, or one of the environment. `ConfigError` for what is none."""
    if given is None:
        return Outbox()
    if not isinstance(given, Outbox):
        raise ConfigError(
            f"expected an Outbox as the second argument, not {type(given).__name__}: the connection comes first, as "
            "OutboxProducer(connection, outbox)"
        )
    return given


class OutboxProducer(Producer):
    """`await OutboxProducer(session, outbox).invalidate("agent_config", "a7", "acme")`, and the caller commits.

    Each call is one INSERT in the caller's transaction, which is neither begun nor ended here. Without a transaction it
    raises `ConfigError`, as where the database swallows the row: a rule or a trigger may. Errors of the database are
    the driver's own. Receipts are pending: a relay (`cachebus worker outbox`) applies what was committed, so
    `wait="nodes"` is a `ValueError`.
    """

    def __init__(self, connection: Any, outbox: Outbox | None = None) -> None:
        """`connection`: an AsyncSession or AsyncConnection of SQLAlchemy, a connection of asyncpg, or an
        AsyncConnection of psycopg; `ConfigError` for any other, and for what is no `Outbox`. `outbox`: made once and
        shared. Without it, one is made from the environment, which takes longer than the INSERT."""
        self._outbox = outbox_of(outbox)
        self._orders = self._outbox.orders  # shared, and not made with every transaction
        self._connection = connection
        self._write = async_writer(connection)

    @asynccontextmanager
    async def together(self) -> AsyncIterator[Producer]:
        """Write several commands by one INSERT: `await several.invalidate(...)` in `async with producer.together() as
        several:`.

        They are written at the end of the block, and not at all if the block raises.
        """
        rows: list[Row] = []
        yield _Together(self._outbox, rows)
        await self._written(rows)

    async def _send(self, order: Order, wait: Wait | None) -> Receipt:
        receipt = receipt_for_command(order.plan, wait)
        await self._written([self._outbox.row(order)])
        return receipt

    async def _written(self, rows: Sequence[Row]) -> None:
        for part in in_parts(rows):
            await self._write(self._connection, self._outbox.insert, part)


class _Together(Producer):
    """Gathers the rows."""

    def __init__(self, outbox: Outbox, rows: list[Row]) -> None:
        self._orders, self._outbox, self._rows = outbox.orders, outbox, rows

    async def _send(self, order: Order, wait: Wait | None) -> Receipt:
        receipt = receipt_for_command(order.plan, wait)
        self._rows.append(self._outbox.row(order))
        return receipt
