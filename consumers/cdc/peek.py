"""One look into a slot: what was committed is told from where the slot stands, and told again until it moves on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import asyncpg

from cachebus.clock import monotonic
from consumers.cdc.catalogue import OWN_TABLES
from consumers.cdc.change import RowChange
from consumers.cdc.pgoutput import Begin, Commit, Decoder, PgOutputError
from consumers.source import Item

PEEK: Final = (
    "SELECT lsn::text AS lsn, data FROM pg_logical_slot_peek_binary_changes("
    "$1, NULL, $2, 'proto_version', '1', 'publication_names', $3)"
)
SNAPSHOT: Final = "SELECT pg_current_snapshot()::text"
XID_BITS: Final = 0xFFFFFFFF
VISIBLE_FIRST_S: Final = 0.001
VISIBLE_MAX_S: Final = 0.1


class Told(NamedTuple):
    """A change, or bytes that tell of none."""

    change: RowChange | None
    data: bytes
    problem: str
    xid: int
    number: int
    """Which of its transaction it is, from 1."""


@dataclass
class Slice:
    """Some of what a peek tells, in its order."""

    items: list[Item] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    """Where whole transactions end: how many items lie before that, and the LSN behind it."""


class Peek:
    """A transaction with a cursor; both are over when it is closed.

    `skip`: changes of the first transaction that were applied before, when there was no time for the rest.
    """

    def __init__(self, connection: asyncpg.Connection, *, skip: tuple[int, int] = (0, 0)) -> None:
        self._connection = connection
        self._transaction: Any = None
        self._cursor: Any = None
        self._decoder = Decoder()
        self._xids: set[int] = set()
        """Transactions that it has told of, and that others may not see yet."""
        self._xid = 0
        self._told = 0
        """How many changes of the transaction in hand were told."""
        self._skip_of, self._skip = skip
        self.opened_s = monotonic()
        self.count = 0
        """Rows that the server has told."""
        self.over = False
        """Whether it was heard to its end."""
        self.end = 0
        """Where the last whole transaction ends of which all is done with."""
        self.place = skip
        """The transaction in hand, and how many of its changes are done with."""

    @property
    def waits(self) -> bool:
        """Whether transactions are told of that others do not see yet."""
        return bool(self._xids)

    async def open(self, slot: str, limit: int, publication: str, timeout_s: float) -> None:
        """Begin; what the driver raises."""
        self._transaction = self._connection.transaction(readonly=True, isolation="read_committed")
        await self._transaction.start()
        self._cursor = await self._connection.cursor(PEEK, slot, limit, publication, timeout=timeout_s)

    async def close(self) -> None:
        """End it."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await transaction.rollback()

    async def slice(self, limit: int, timeout_s: float) -> Slice:
        """At least one item, unless there is none any more."""
        found = Slice()
        while not found.items and not self.over:
            rows = await self._cursor.fetch(limit, timeout=timeout_s)
            self.over = len(rows) < limit
            self.count += len(rows)
            for row in rows:
                self._take(row, found)
        return found

    def _take(self, row: Any, found: Slice) -> None:
        try:
            said = self._decoder.decode(row["data"], row["lsn"])
        except PgOutputError as error:
            self._add(found, row["lsn"], None, row["data"], str(error))
            return
        if isinstance(said, Begin):
            self._xids.add(said.xid)
            self._xid, self._told = said.xid, 0
        elif isinstance(said, Commit):
            found.ends.append((len(found.items), said.end_lsn))
        elif isinstance(said, list):
            for change in said:
                if change.table not in OWN_TABLES:
                    self._add(found, change.position, change)

    def _add(
        self, found: Slice, place: str, change: RowChange | None, data: bytes = b"", problem: str = ""
    ) -> None:  # fmt: skip
        self._told += 1
        if self._xid != self._skip_of or self._told > self._skip:
            told = Told(change, data, problem, self._xid, self._told)
            found.items.append(Item(place, told, None if change is None else change.committed_at_s))

    async def seen_by_all(self) -> None:
        """Wait until whoever begins to read sees what was told of: the log has a commit before that, by far where a
        synchronous standby is waited for. Who loads in between loads what is old, and would keep it."""
        patience_s = VISIBLE_FIRST_S
        while self._xids:
            _, end, running = str(await self._connection.fetchval(SNAPSHOT)).split(":")
            under_way = {int(one) & XID_BITS for one in running.split(",") if one}
            self._xids = {xid for xid in self._xids if xid in under_way or _is_behind(xid, int(end))}
            if self._xids:
                await asyncio.sleep(patience_s)
                patience_s = min(VISIBLE_MAX_S, patience_s * 2)

    def done(self, part: Slice, count: int) -> None:
        """Of a slice so many items are done with, from its head on."""
        ended = -1
        for before, end in part.ends:
            if before <= count:
                ended, self.end = before, end
        if ended == count:
            self.place = (0, 0)
        elif count:
            told: Told = part.items[count - 1].raw
            self.place = told.xid, told.number


def _is_behind(xid: int, end: int) -> bool:
    """Whether a transaction, by the 32 bits of its number, is none of those before `end`: nearer behind it than
    before."""
    return (xid - end) & XID_BITS < 1 << 31
