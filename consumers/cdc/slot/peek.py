"""One peek into a slot: the next changes, a slice at a time, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Final

from cachebus.base.log import logger
from cachebus.consumers.cdc.slot.pgoutput import Begin, Commit, Decoder, PgOutputError, Relation, Told
from cachebus.consumers.cdc.slot.storage import OWN_TABLES, lsn_of
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Item

if TYPE_CHECKING:
    import asyncpg

FAR, NEAR = 512, 16
"""For so many rows ahead each row says what they take."""
SLICE_BYTES: Final = 8 << 20
PEEK: Final = f"""
SELECT lsn::text AS lsn, data,
       coalesce(sum(length(data)) OVER (ROWS BETWEEN 1 FOLLOWING AND {FAR} FOLLOWING), 0) AS far_bytes,
       coalesce(sum(length(data)) OVER (ROWS BETWEEN 1 FOLLOWING AND {NEAR} FOLLOWING), 0) AS near_bytes
FROM pg_logical_slot_peek_binary_changes(
  $1, NULL, $2, 'proto_version', '1', 'publication_names', convert_from($3, 'UTF8'))
"""
AS_IT_IS: Final = "BEGIN READ ONLY; SET LOCAL client_encoding TO SQL_ASCII"
"""The SQL that begins a peek in which the server sends text as it is, without converting it to UTF-8."""
XID_BITS: Final = 0xFFFFFFFF


@dataclass(slots=True)
class Change(Item):
    """A change in the slot: its number in its transaction, and where the last complete transaction before it ends."""

    transaction: int = 0
    number: int = 0
    behind: int | None = None


@dataclass
class Progress:
    """How many changes of a transaction are done. The slot can only advance behind the end of a transaction. Without
    this count, one that is too large for L2 to take in time would be begun again for ever."""

    transaction: int = 0
    done: int = 0


@dataclass
class PassedOver:
    """Transactions that the log has, and that other sessions do not see yet. What is behind them does not wait for
    them. They are read once more when they are visible, so the slot stays before the first of them."""

    unseen: dict[int, int] = field(default_factory=dict)
    """The xid of each transaction."""
    done_to: tuple[int, int] = (0, 0)
    """All is done up to this change of this transaction, except these transactions."""
    since_s: float | None = None
    """Since when there are any."""

    def skip_to(self, transaction: int) -> float:
        """How many changes of this transaction are done."""
        if transaction in self.unseen or transaction > self.done_to[0]:
            return 0
        return self.done_to[1] if transaction == self.done_to[0] else float("inf")

    def done(self, last: Change) -> None:
        """All changes up to this one are done."""
        self.done_to = max(self.done_to, (last.transaction, last.number))

    def heard(self, unseen: dict[int, int], now_s: float) -> None:
        """A peek has ended, with these transactions not visible yet."""
        self.unseen = unseen
        self.since_s = (self.since_s or now_s) if unseen else None

    def are_unseen_by(self, snapshot: str) -> bool:
        """Whether none of them is visible in this snapshot."""
        return unseen(set(self.unseen.values()), snapshot) == set(self.unseen.values())


@dataclass(frozen=True)
class Unreadable:
    """A message that can't be parsed."""

    data: bytes
    problem: str


class Peek:
    """The changes of one peek. `follows`: whether rules apply to a table; rows of other tables are not even parsed.
    `encoding`: the database's, if the server does not convert its text; "" for UTF-8."""

    def __init__(
        self, progress: Progress, passed: PassedOver, follows: Callable[[Relation], bool], encoding: str = ""
    ) -> None:
        self._encoding = encoding
        self._progress = progress
        self._passed = passed
        self._follows = follows
        self._decoder = Decoder(encoding)
        self._followed: dict[int, tuple[tuple[Relation, ...], bool | None]] = {}
        """By `id` of what a message is about, which costs less than all that is in it. None: the worker's own."""
        self._at = Progress()
        self._skip_to = 0.0
        self._has_other = False
        self._cursor: Any = None
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
        self.unseen: dict[int, int] = {}
        """Those that were passed over, of which something is for somebody: their xids."""
        self._xid: int | None = None
        """That of the transaction in hand, where it is passed over."""
        self.first_at_s: float | None = None
        """When the first was committed of which something was given out."""
        self.over = False
        """Whether it was heard to its end."""
        self._far_bytes = self._near_bytes = inf
        """What the next `FAR` and `NEAR` rows take."""

    async def begin(
        self, connection: asyncpg.Connection, statement: Any, asked: tuple[str, int, bytes], timeout_s: float
    ) -> None:
        """Ask for the next changes. `asked`: the slot, about how many, and the publication. It opens a transaction."""
        self._timeout_s, self.limit = timeout_s, asked[1]
        await connection.execute(AS_IT_IS if self._encoding else "BEGIN READ ONLY")
        self._cursor = await statement.cursor(*asked, timeout=timeout_s)

    async def rows(self, limit: int) -> list[Any]:
        """The next rows, none at the end: at most so many, and no more than take `SLICE_BYTES`, but for the last one.
        The server also sends columns that no rule needs."""
        rows: list[Any] = []
        left_bytes = SLICE_BYTES
        while not self.over and len(rows) < limit and left_bytes > 0:
            count = min(limit - len(rows), self._fitting(left_bytes))
            some = await self._cursor.fetch(count, timeout=self._timeout_s)
            self.over = len(some) < count or not some[-1]["far_bytes"]
            if some:
                self._far_bytes, self._near_bytes = some[-1]["far_bytes"], some[-1]["near_bytes"]
            left_bytes -= sum(len(row["data"]) for row in some)
            rows += some
        self.count += len(rows)
        if rows:
            self._begins = self._begins or rows[0]["lsn"]
            self._ends = rows[-1]["lsn"]
        begun = (row["data"] for row in rows)
        self.xids.update(int.from_bytes(data[-4:]) for data in begun if data[:1] == b"B")
        return rows

    def _fitting(self, left_bytes: int) -> int:
        """How many of the next rows take no more than this, as far as is known; at least one."""
        return FAR if self._far_bytes <= left_bytes else NEAR if self._near_bytes <= left_bytes else 1

    def read(self, rows: Sequence[Any]) -> list[Item]:
        """The items of these rows, without those of transactions whose `xids` are not visible."""
        items: list[Item] = []
        for lsn, data, _, _ in rows:
            self._take(data, lsn, items)
        self.given += len(items)
        if items and self.first_at_s is None:
            self.first_at_s = items[0].sent_s
        return items

    @property
    def limited(self) -> bool:
        """Whether the slot may have more changes than this peek returns."""
        return self.count >= self.limit

    def _take(self, data: bytes, lsn: str, items: list[Item]) -> None:
        try:
            found = self._decoder.read(data, lsn)
        except PgOutputError as error:
            logger.warning("cdc: a message at {} can't be read: {}", lsn, clean(str(error)))
            self._add(items, lsn, Unreadable(data, str(error)), None)
            return
        if isinstance(found, Told):
            _, followed = self._followed.get(id(found.relations)) or self._known(found.relations)
            if followed is not None:
                self._add(items, lsn, found if followed else None, found.committed_at_s)
        elif isinstance(found, Begin):
            self._begin(found)
        elif isinstance(found, Commit) and not self.unseen:
            self.last = found.end_lsn
            if self._has_other:
                self.end = found.end_lsn

    def _begin(self, found: Begin) -> None:
        at = self._at
        at.transaction, at.done, self._has_other = found.lsn, 0, False
        self._skip_to = self._passed.skip_to(found.lsn)
        if found.lsn == self._progress.transaction:
            self._skip_to = max(self._skip_to, self._progress.done)
        self._xid = found.xid if found.xid in self.xids else None

    def _known(self, relations: tuple[Relation, ...]) -> tuple[tuple[Relation, ...], bool | None]:
        others = [one for one in relations if one.table not in OWN_TABLES]
        followed = any(map(self._follows, others)) if others else None
        known = self._followed[id(relations)] = relations, followed
        return known

    def _add(self, items: list[Item], lsn: str, raw: Any, sent_s: float | None) -> None:
        at = self._at
        at.done += 1
        self._has_other = True
        if self._xid is not None:
            if raw is not None:
                self.unseen[at.transaction] = self._xid
        elif at.done > self._skip_to:
            items.append(Change(lsn, raw, sent_s, False, at.transaction, at.done, self.end))

    @property
    def wal_bytes(self) -> int:
        """How much WAL there is from the first change to the last."""
        return lsn_of(self._ends) - lsn_of(self._begins) if self._begins else 0

    def seen_by(self, snapshot: str) -> bool:
        """Whether all its transactions are visible in this snapshot, and so in all later ones."""
        self.xids = unseen(self.xids, snapshot)
        return not self.xids


def unseen(xids: set[int], snapshot: str) -> set[int]:
    """The transactions that are not visible in this snapshot."""
    if not xids:
        return xids
    _, end, running = snapshot.split(":")
    under_way = {int(one) & XID_BITS for one in running.split(",") if one}
    return {xid for xid in xids if xid in under_way or _is_behind(xid, int(end))}


def _is_behind(xid: int, end: int) -> bool:
    """Whether a transaction is not before `end`, by the 32 bits of its number, which wrap around."""
    return (xid - end) & XID_BITS < 1 << 31
