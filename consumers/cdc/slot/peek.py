"""One peek into a slot: the next changes, a slice at a time, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cachebus.base.log import logger
from cachebus.consumers.cdc.slot.passed import (
    LAST,
    NO_TRANSACTION,
    PassedOver,
    Transaction,
    TransactionProgress,
    unseen,
)
from cachebus.consumers.cdc.slot.pgoutput import ROWS, Begin, Decoder, PgOutputError, Relation, Told
from cachebus.consumers.cdc.slot.slices import AS_IT_IS, BEGIN, Slices, data_of
from cachebus.consumers.cdc.slot.storage import OWN_TABLES, lsn_of
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Item

if TYPE_CHECKING:
    import asyncpg

ABOUT: Final = slice(0, 5)
"""In the message of a row: its kind, and its table's number."""
_told = Told._make


@dataclass(slots=True)
class SlotChange(Item):
    """A change in the slot: its number in its transaction, and where the last complete transaction before it ends."""

    transaction: Transaction = NO_TRANSACTION
    number: int = 0
    behind: int | None = None


class PeekQuestion(NamedTuple):
    """What the server is asked for: the slot, about how many changes, and the publication."""

    slot: str
    limit: int
    publication: bytes


@dataclass(frozen=True)
class UnreadableMessage:
    """A message that can't be parsed."""

    data: bytes
    problem: str


class Peek:
    """The changes of one peek. `follows`: whether rules apply to a table; rows of other tables are not even parsed.
    `encoding`: the database's, if the server does not convert its text; "" for UTF-8."""

    def __init__(
        self, progress: TransactionProgress, passed: PassedOver, follows: Callable[[Relation], bool], encoding: str = ""
    ) -> None:
        self._encoding = encoding
        self._progress = progress
        self._passed = passed
        self._follows = follows
        self._decoder = Decoder(encoding)
        self._about: dict[bytes, tuple[tuple[Relation, ...], bool | None]] = {}
        """By how the message of a row begins, with its kind and its table: that table, and whether it is followed."""
        self._at = TransactionProgress()
        self.expected: Transaction | None = None
        """The transaction that must be told of, as one before this session has told of it."""
        self.has_met: bool | None = None
        """Whether it was; None: its place in the log is not reached."""
        self._skip_to = 0.0
        self._has_other = False
        self.slices: Slices
        """Its rows; there once it has begun."""
        self._begins = self._ends = ""
        self.limit = 0
        self.count = 0
        self.given = 0
        """Changes that were given out."""
        self.end: int | None = None
        """Where the last whole transaction ends in which there was something, before the first that is not seen."""
        self.last: int | None = None
        """Where the last whole transaction ends, were it the worker's own; likewise."""
        self.xids: set[int] = set()
        """Transactions that it has told of, and that others may not see yet."""
        self.waited_for: set[int] = set()
        """Those of them for which that was waited."""
        self.unseen: dict[Transaction, int] = {}
        """Those that were passed over, of which something is for somebody: their xids."""
        self._xid: int | None = None
        """That of the transaction in hand, where it is passed over."""
        self.first_at_s: float | None = None
        """When the first was committed of which something was given out."""

    async def begin(
        self, connection: asyncpg.Connection, statement: Any, question: PeekQuestion, timeout_s: float
    ) -> None:
        """Ask for the next changes. It opens a transaction."""
        self.limit = question.limit
        await connection.execute(AS_IT_IS if self._encoding else BEGIN)
        self.slices = Slices(await statement.cursor(*question, timeout=timeout_s), timeout_s)

    async def rows(self, limit: int) -> list[Any]:
        """The next slice. The server also sends columns that no rule needs."""
        rows = await self.slices.next(limit)
        self.count += len(rows)
        if rows:
            self._begins = self._begins or rows[0]["lsn"]
            self._ends = rows[-1]["lsn"]
        self.xids.update(int.from_bytes(data[-4:]) for data in map(data_of, rows) if data[:1] == b"B")
        return rows

    def read(self, rows: Sequence[Any]) -> list[Item]:
        """The items of these rows, without those of transactions whose `xids` are not visible."""
        items: list[Item] = []
        for lsn, data, _, _ in rows:
            about = self._about.get(data[ABOUT])
            if about is None:
                self._take(data, lsn, items)
                continue
            relations, followed = about
            if followed is not None:
                committed_at_s = self._decoder.committed_at_s
                raw = _told((data, relations, lsn, committed_at_s)) if followed else None
                self._add(items, lsn, raw, committed_at_s)
        self.given += len(items)
        if items and self.first_at_s is None:
            self.first_at_s = items[0].sent_s
        return items

    @property
    def over(self) -> bool:
        """Whether all its rows were taken."""
        return self.slices.over

    @property
    def limited(self) -> bool:
        """Whether the slot may have more changes than this peek returns."""
        return self.count >= self.limit

    @property
    def up_to(self) -> Transaction:
        """The transaction up to which it has told of all, once it is over."""
        return self._at.transaction if self.limited else LAST

    def _take(self, data: bytes, lsn: str, items: list[Item]) -> None:
        try:
            found = self._decoder.read(data, lsn)
        except PgOutputError as error:
            logger.warning("cdc: a message at {} can't be read: {}", lsn, clean(str(error)))
            self._add(items, lsn, UnreadableMessage(data, str(error)), None)
            return
        if isinstance(found, Told):
            followed = self._is_followed(found.relations)
            if data[:1] in ROWS:
                self._about[data[ABOUT]] = found.relations, followed
            if followed is not None:
                self._add(items, lsn, found if followed else None, found.committed_at_s)
        elif found is None:
            self._about.clear()  # it may have told of a table anew
        elif isinstance(found, Begin):
            self._begin(found)
        elif not self.unseen:
            self.last = found.end_lsn
            if self._has_other:
                self.end = found.end_lsn

    def _begin(self, found: Begin) -> None:
        at = self._at
        at.transaction, at.done = Transaction(found.lsn, found.xid, found.committed_at_s), 0
        self._has_other = False
        if self.expected is not None and self.has_met is None and found.lsn >= self.expected.lsn:
            self.has_met = at.transaction == self.expected
        self._skip_to = self._passed.skip_to(at.transaction)
        if at.transaction == self._progress.transaction:
            self._skip_to = max(self._skip_to, self._progress.done)
        self._xid = found.xid if found.xid in self.xids else None

    def _is_followed(self, relations: tuple[Relation, ...]) -> bool | None:
        """None: they are the worker's own."""
        others = [one for one in relations if one.table not in OWN_TABLES]
        return any(map(self._follows, others)) if others else None

    def _add(self, items: list[Item], lsn: str, raw: Any, sent_s: float | None) -> None:
        at = self._at
        at.done += 1
        self._has_other = True
        if self._xid is not None:
            if raw is not None:
                self.unseen[at.transaction] = self._xid
        elif at.done > self._skip_to:
            items.append(SlotChange(lsn, raw, sent_s, False, at.transaction, at.done, self.end))

    @property
    def wal_bytes(self) -> int:
        """How much WAL there is from the first change to the last."""
        return lsn_of(self._ends) - lsn_of(self._begins) if self._begins else 0

    def seen_by(self, snapshot: str) -> bool:
        """Whether all its transactions are visible in this snapshot, and so in all later ones."""
        self.xids = unseen(self.xids, snapshot)
        return not self.xids
