"""One look into a slot: what comes next, a slice at a time, in the transaction that holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
FIRST_ROWS: Final = 32
MOST_ROWS: Final = 8192
SLICE_BYTES: Final = 8 << 20
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


@dataclass
class PassedOver:
    """Transactions of which the log tells, and which others do not see yet: what is behind them does not wait, and
    they are told once more when they are seen. The slot goes no further than before the first. Of one session: in the
    log of one server what comes later has a larger number."""

    unseen: dict[int, int] = field(default_factory=dict)
    """By transaction: its xid."""
    done_to: tuple[int, int] = (0, 0)
    """Up to this change of this transaction all is done with, but for these."""
    since_s: float | None = None
    """Since when there have been any."""

    def skip_to(self, transaction: int) -> float:
        """How many of its changes are done with."""
        if transaction in self.unseen or transaction > self.done_to[0]:
            return 0
        return self.done_to[1] if transaction == self.done_to[0] else float("inf")

    def done(self, last: Change) -> None:
        """All up to this one is done with."""
        self.done_to = max(self.done_to, (last.transaction, last.number))

    def heard(self, unseen: dict[int, int], now_s: float) -> None:
        """A look is over, of which these were not seen."""
        self.unseen = unseen
        self.since_s = (self.since_s or now_s) if unseen else None

    def are_unseen_by(self, snapshot: str) -> bool:
        """Whether nothing has become of them."""
        return unseen(set(self.unseen.values()), snapshot) == set(self.unseen.values())


class Slices:
    """How many rows are fetched together: so many that they take no more memory than a few megabytes, whatever is in
    them. A column that no rule looks at is told all the same."""

    def __init__(self) -> None:
        self._rows = FIRST_ROWS

    def rows(self, limit: int) -> int:
        """At most so many."""
        return min(limit, self._rows)

    def fetched(self, rows: Sequence[Any]) -> None:
        """These came, and took so much."""
        size_bytes = sum(len(row["data"]) for row in rows)
        if size_bytes > SLICE_BYTES:
            self._rows = max(1, min(self._rows, len(rows) * SLICE_BYTES // size_bytes))
        elif 4 * size_bytes < SLICE_BYTES and len(rows) >= self._rows:
            self._rows = min(MOST_ROWS, 4 * self._rows)


@dataclass(frozen=True)
class Unreadable:
    """A message that is none."""

    data: bytes
    problem: str


class Peek:
    """What one look tells. `follows`: whether rules are for a table; others' rows are not even read. `encoding`: the
    database's, where its rows are to be told as they are; "" for UTF-8."""

    def __init__(
        self, progress: Progress, passed: PassedOver, follows: Callable[[str, str], bool], encoding: str = ""
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

    async def begin(
        self, connection: asyncpg.Connection, statement: Any, asked: tuple[str, int, bytes], timeout_s: float
    ) -> None:
        """Ask for what comes next (of which slot, about how many, of which publication): a transaction is open then."""
        self._timeout_s, self.limit = timeout_s, asked[1]
        await connection.execute(AS_IT_IS if self._encoding else "BEGIN READ ONLY")
        self._cursor = await statement.cursor(*asked, timeout=timeout_s)

    async def rows(self, limit: int) -> list[Any]:
        """The next that it tells, about so many; none at its end."""
        rows: list[Any] = await self._cursor.fetch(limit, timeout=self._timeout_s)
        self.over = len(rows) < limit
        self.count += len(rows)
        if rows:
            self._begins = self._begins or rows[0]["lsn"]
            self._ends = rows[-1]["lsn"]
        begun = (row["data"] for row in rows)
        self.xids.update(int.from_bytes(data[-4:]) for data in begun if data[:1] == b"B")
        return rows

    def read(self, rows: Sequence[Any]) -> list[Item]:
        """What of them is to be done: nothing of transactions whose `xids` are not seen."""
        items: list[Item] = []
        for lsn, data in rows:
            self._take(data, lsn, items)
        self.given += len(items)
        if items and self.first_at_s is None:
            self.first_at_s = items[0].sent_s
        return items

    @property
    def limited(self) -> bool:
        """Whether there may be more than it tells."""
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
        followed = any(self._follows(one.schema, one.table) for one in others) if others else None
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
        """From the first change to the last."""
        return lsn_of(self._ends) - lsn_of(self._begins) if self._begins else 0

    def seen_by(self, snapshot: str) -> bool:
        """Whether all that it has told of is seen by whoever has this snapshot, or begins to read later."""
        self.xids = unseen(self.xids, snapshot)
        return not self.xids


def unseen(xids: set[int], snapshot: str) -> set[int]:
    """Which of these transactions somebody with this snapshot does not see."""
    if not xids:
        return xids
    _, end, running = snapshot.split(":")
    under_way = {int(one) & XID_BITS for one in running.split(",") if one}
    return {xid for xid in xids if xid in under_way or _is_behind(xid, int(end))}


def _is_behind(xid: int, end: int) -> bool:
    """Whether a transaction, by the 32 bits of its number, is none of those before `end`: nearer behind it than
    before."""
    return (xid - end) & XID_BITS < 1 << 31
