"""How far the changes of a slot are done, and which transactions were passed over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cachebus.consumers.cdc.slot.peek import SlotChange

XID_BITS: Final = 0xFFFFFFFF


class Transaction(NamedTuple):
    """What tells a transaction from all others. Where its commit lies in the log does not: a database that came back
    with older data writes another one there."""

    lsn: int = 0
    xid: int = 0
    committed_at_s: float = 0.0


NO_TRANSACTION: Final = Transaction()
LAST: Final = Transaction(1 << 64)
"""Behind all others."""


@dataclass
class TransactionProgress:
    """How many changes of a transaction are done. The slot can only advance behind the end of a transaction. Without
    this count, one that is too large for L2 to take in time would be begun again for ever."""

    transaction: Transaction = NO_TRANSACTION
    done: int = 0
    stored: bool = False
    """Whether something of what is done lies in the worker's own tables."""

    def behind(self, transaction: Transaction, done: int, *, stored: bool) -> TransactionProgress:
        """The progress once so much of this transaction is done."""
        stored |= self.stored and transaction == self.transaction
        return TransactionProgress(transaction, done, stored)

    def over_sessions(self) -> TransactionProgress:
        """What of it counts in another session. A database that has come back without its last commits may have the
        transaction, and not what was stored of it since."""
        return TransactionProgress(self.transaction) if self.stored else self


class Reached(NamedTuple):
    """A change of a transaction, up to which all is done."""

    transaction: Transaction
    number: int


NOTHING: Final = Reached(NO_TRANSACTION, 0)


@dataclass
class PassedOver:
    """Transactions that the log has, and that other sessions do not see yet. What is behind them does not wait for
    them. They are read once more when they are visible, so the slot stays before the first of them."""

    unseen: dict[Transaction, int] = field(default_factory=dict)
    """The xid of each transaction."""
    done_to: Reached = NOTHING
    """All is done up to this change, except of these transactions."""
    since_s: float | None = None
    """Since when there are any."""

    def skip_to(self, transaction: Transaction) -> float:
        """How many changes of this transaction are done."""
        if transaction in self.unseen or transaction > self.done_to.transaction:
            return 0
        return self.done_to.number if transaction == self.done_to.transaction else float("inf")

    def done(self, last: SlotChange) -> None:
        """All changes up to this one are done."""
        self.done_to = max(self.done_to, Reached(last.transaction, last.number))

    def heard(self, unseen: dict[Transaction, int], up_to: Transaction, now_s: float) -> None:
        """A peek has ended that has told of all up to a transaction, with these not visible yet. Those behind that one
        it says nothing of."""
        self.unseen = {one: xid for one, xid in self.unseen.items() if one > up_to} | unseen
        self.since_s = (self.since_s or now_s) if self.unseen else None

    def are_unseen_by(self, snapshot: str) -> bool:
        """Whether none of them is visible in this snapshot."""
        return unseen(set(self.unseen.values()), snapshot) == set(self.unseen.values())


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
