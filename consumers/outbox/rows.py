"""The rows of an outbox, as they are taken."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from cachebus.consumers.worker.source import Item, Session

SINCE: Final = "CASE WHEN created_at <= statement_timestamp() THEN greatest(created_at, due_at) ELSE due_at END"
"""SQL, of PostgreSQL: since when a row that is due is so. One that was written at a time that is yet to come tells only
when it is due, which may be before all times."""
RowName = tuple[int, int, int]
RowKey = tuple[int, int, float]
TYPE: Final = r'"data_type"\s*:\s*"([A-Za-z_][A-Za-z0-9_.:-]{0,63})"'
"""Where a command says its data type, if that looks like a name, and like nobody's data. To search for it takes a tenth
of reading the command, and those of what is related come behind it."""
_IN_TEXT: Final = re.compile(TYPE)
_IN_BYTES: Final = re.compile(TYPE.encode())


class OutboxSession(Session):
    """What sessions of outboxes share."""

    def origin(self, item: Item) -> str:
        """See `Session.origin`: the data type that the row names. Its tenant may be a customer's name."""
        command = item.raw.command
        if isinstance(command, str):
            found = _IN_TEXT.search(command)
            return f"the type {found[1]}" if found else ""
        seen = _IN_BYTES.search(command) if isinstance(command, bytes) else None
        return f"the type {seen[1].decode()}" if seen else ""


class PostgresRow(NamedTuple):
    """A row in PostgreSQL, locked by the transaction that has taken it."""

    part: int
    """The number of the table's part that it is in."""
    place: tuple[int, int]
    """Where it is in that part, until the transaction ends."""
    id: int
    command: str | bytes | None
    """None where it is longer than any may be."""
    waits_for: int
    """The shard whose primary it waits for; -1 for none."""
    since_s: float
    """Since when it is due, in Unix seconds."""
    attempts: int
    """How often it will have been set aside, if it is."""
    due_s: float = float("-inf")
    """When it is due, in Unix seconds."""

    @property
    def named(self) -> RowName:
        """By what it is known again after its transaction, though it is due later by then: a table that was emptied, or
        restored, gives its ids to other rows."""
        return self.part, self.id, hash(self.command)

    @property
    def key(self) -> RowKey:
        """By what it is found as long as it stays as it is: with the namespace that is the table's key."""
        return self.id, self.waits_for, self.due_s


class SqliteRow(NamedTuple):
    """A row in SQLite, whose columns may hold values of any type."""

    id: int
    command: Any
    """None where it is longer than any may be."""
    created_at: Any
    due_at: Any
    waits_for: Any
    """The shard whose primary it waits for; -1 for none."""
    is_due_at_no_time: int
    """Whether `due_at` is neither a number of seconds nor a time."""

    @property
    def named(self) -> tuple[Any, Any, int]:
        """By what it is found again: a table that was made anew, or restored, gives its ids to other rows."""
        return self.command, self.created_at, self.id

    @property
    def since_s(self) -> float | None:
        """Since when it is due, in Unix seconds, if that is a time."""
        created_at, due_at = self.created_at, self.due_at
        if isinstance(created_at, int | float) and isinstance(due_at, int | float):
            return max(created_at, due_at)
        return None
