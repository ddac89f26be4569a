"""One look into a slot: what comes next, a slice at a time, in the transaction that holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from cachebus.consumers.cdc.slot.pgoutput import Begin, Commit, Decoder, PgOutputError, Relation, Told
from cachebus.consumers.cdc.slot.storage import OWN_TABLES, lsn_of
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Item

if TYPE_CHECKING:
    import asyncpg

PEEK: Final = (
    "SELECT lsn::text AS lsn, data FROM pg_logical_slot_peek_binary_changes("
    "$1, NULL, $2, 'proto_version', '1', 'publication_names', convert_from($3, 'UTF8'))"
)
AS_IT_IS: Final = "BEGIN READ ONLY; SET LOCAL client_encoding TO SQL_ASCII"
"""The server makes no UTF-8 of what it tells then."""
XID_BITS: Final = 0xFFFFFFFF


@dataclass(slots=True)
class Change(Item):
    """A change of the slot: which of which transaction, and where the last whole one before it ends."""

    transaction: int = 0
    number: int = 0
    behind: int | None = None


@dataclass
class Progress:
    """How many changes of one transaction are done with, of which the slot can only go behind the end: so that one that
    is larger than what L2 takes in time is not begun anew for ever."""

    transaction: int = 0
    done: int = 0


@dataclass(frozen=True)
class Unreadable:
    """A message that is none."""

    data: bytes
    problem: str


class Peek:
    """What one look tells. `follows`: whether rules are for a table; others' rows are not even read. `encoding`: the
    database's, where its rows are to be told as they are; "" for UTF-8."""

    def __init__(self, progress: Progress, follows: Callable[[str, str], bool], encoding: str = "") -> None:
        self._encoding = encoding
        self._progress = progress
        self._follows = follows
        self._decoder = Decoder(encoding)
        self._followed: dict[int, tuple[Relation, bool | None]] = {}
        """By `id`, which costs less than all that is in it. None: the worker's own."""
        self._at = Progress()
        self._has_other = False
        self._cursor: Any = None
        self._begins = self._ends = ""
        self.count = 0
        self.end: int | None = None
        """Where the last whole transaction ends in which there was something."""
        self.last: int | None = None
        """Where the last whole transaction ends, were it the worker's own."""
        self.xids: set[int] = set()
        """Transactions that it has told of, and that others may not see yet."""
        self.over = False
        """Whether it was heard to its end."""

    async def begin(
        self, connection: asyncpg.Connection, statement: Any, asked: tuple[str, int, bytes], timeout_s: float
    ) -> None:
        """Ask for what comes next (of which slot, about how many, of which publication): a transaction is open then."""
        self._timeout_s = timeout_s
        await connection.execute(AS_IT_IS if self._encoding else "BEGIN READ ONLY")
        self._cursor = await statement.cursor(*asked, timeout=timeout_s)

    async def some(self, limit: int) -> list[Item]:
        """The next changes, about so many; none at its end, or where none of them is for anybody."""
        rows = await self._cursor.fetch(limit, timeout=self._timeout_s)
        self.over = len(rows) < limit
        self.count += len(rows)
        if rows:
            self._begins = self._begins or rows[0]["lsn"]
            self._ends = rows[-1]["lsn"]
        items: list[Item] = []
        for row in rows:
            self._take(row["data"], row["lsn"], items)
        return items

    def _take(self, data: bytes, lsn: str, items: list[Item]) -> None:
        at = self._at
        try:
            found = self._decoder.read(data, lsn)
        except PgOutputError as error:
            logger.warning("cdc: a message at {} can't be read: {}", lsn, clean(str(error)))
            self._add(items, lsn, Unreadable(data, str(error)), None)
            return
        if found is None:
            return
        if isinstance(found, Told):
            meant = [self._is_followed(one) for one in found.relations]
            if any(one is not None for one in meant):
                self._add(items, lsn, found if any(meant) else None, found.committed_at_s)
        elif isinstance(found, Begin):
            at.transaction, at.done, self._has_other = found.lsn, 0, False
            self.xids.add(found.xid)
        elif isinstance(found, Commit):
            self.last = found.end_lsn
            if self._has_other:
                self.end = found.end_lsn

    def _is_followed(self, relation: Relation) -> bool | None:
        known = self._followed.get(id(relation))
        if known is None:
            own = relation.table in OWN_TABLES
            known = relation, None if own else self._follows(relation.schema, relation.table)
            self._followed[id(relation)] = known
        return known[1]

    def _add(self, items: list[Item], lsn: str, raw: Any, sent_s: float | None) -> None:
        at = self._at
        at.done += 1
        self._has_other = True
        if at.transaction != self._progress.transaction or at.done > self._progress.done:
            items.append(Change(lsn, raw, sent_s, False, at.transaction, at.done, self.end))

    @property
    def wal_bytes(self) -> int:
        """From the first change to the last."""
        return lsn_of(self._ends) - lsn_of(self._begins) if self._begins else 0

    def seen_by(self, snapshot: str) -> bool:
        """Whether all that it has told of is seen by whoever has this snapshot, or begins to read later."""
        if self.xids:
            _, end, running = snapshot.split(":")
            under_way = {int(one) & XID_BITS for one in running.split(",") if one}
            self.xids = {xid for xid in self.xids if xid in under_way or _is_behind(xid, int(end))}
        return not self.xids


def _is_behind(xid: int, end: int) -> bool:
    """Whether a transaction, by the 32 bits of its number, is none of those before `end`: nearer behind it than
    before."""
    return (xid - end) & XID_BITS < 1 << 31
