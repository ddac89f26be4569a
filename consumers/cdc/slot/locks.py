"""Who keeps one of the worker's own tables locked, or the row of its slot: what is to be read or written there waits,
and nothing else does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachebus.consumers.cdc.slot.storage import DEAD, HELD, SLOTS
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.source import Finding

if TYPE_CHECKING:
    from asyncpg import Connection

LOCKED: Final = table_locks.LOCKED
_HELD_UP: Final = {
    SLOTS: "what changes touch is let go of all the same, but the slot does not go behind it, and the server keeps WAL",
    HELD: "what waits for a primary that is away can't be held, and what is held is not tried",
    DEAD: "what can't be applied can't be set aside there",
}


class TableLocked(Exception):
    """The worker can't begin, since a table of its own is locked."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))


async def finding_of(connection: Connection, table: str, slot: str = "", *, known_as: str = "") -> Finding | None:
    """The finding about a table that was waited for, or the row of `slot` in it; None if nobody has it locked any more.
    `known_as`: its name in this session, where that is another."""
    found = await table_locks.holders(connection, known_as or table)
    if not found and slot:
        found = await table_locks.holders_of_row(connection, table, "slot", slot)
    return table_locks.finding("storage", table, found, _HELD_UP[table]) if found else None


async def refused_again(connection: Connection, table: str) -> Finding:
    """The finding that something in this table is refused a lock again and again, though nobody has the table locked,
    or the row of the slot: who may have it."""
    by = await table_locks.holders_of_some_row(connection, table)
    return table_locks.finding("storage", table, by, _HELD_UP[table])
