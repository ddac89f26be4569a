"""What is done of a transaction counts for that one alone, wherever another comes to lie in the log."""

from __future__ import annotations

import struct

import pytest

from cachebus.consumers.cdc.slot.passed import PassedOver, TransactionProgress
from cachebus.consumers.cdc.slot.peek import Peek, SlotChange

DESCRIBED = (
    b"R" + struct.pack(">I", 1) + b"shop\0orders\0d" + struct.pack(">hB", 1, 1) + b"id\0" + struct.pack(">Ii", 23, -1)
)
ROW = b"I" + struct.pack(">I", 1) + b"N" + struct.pack(">hcI", 1, b"t", 1) + b"7"


def told(lsn: int, xid: int, at_us: int) -> list[tuple[str, bytes, int, int]]:
    begin = b"B" + struct.pack(">qqI", lsn, at_us, xid)
    commit = b"C" + struct.pack(">bqqq", 0, lsn, lsn + 8, at_us)
    return [("0/1", data, 0, 0) for data in (begin, DESCRIBED, ROW, ROW, commit)]


def peek_behind(progress: TransactionProgress) -> Peek:
    peek = Peek(progress, PassedOver(), lambda _: True)
    peek.expected = progress.transaction
    return peek


def done_of(number: int) -> TransactionProgress:
    [*_, last] = Peek(TransactionProgress(), PassedOver(), lambda _: True).read(told(64, 700, 10))
    assert isinstance(last, SlotChange)
    return TransactionProgress(last.transaction, number)


def test_what_is_done_of_a_transaction_is_not_done_again() -> None:
    progress = done_of(1)
    peek = peek_behind(progress)
    assert len(peek.read(told(64, 700, 10))) == 1
    assert peek.has_met


@pytest.mark.parametrize(("xid", "at_us"), [(701, 10), (700, 11)], ids=["another xid", "another time"])
def test_another_transaction_at_the_same_place_is_not_done(xid: int, at_us: int) -> None:
    """The database came back with older data: the place of a commit is another's by now."""
    progress = done_of(2)
    peek = peek_behind(progress)
    assert len(peek.read(told(64, xid, at_us))) == 2
    assert peek.has_met is False


def test_one_before_it_says_nothing_of_it_and_one_behind_it_that_it_is_gone() -> None:
    progress = done_of(2)
    peek = peek_behind(progress)
    peek.read(told(32, 699, 9))
    assert peek.has_met is None
    peek.read(told(96, 701, 12))
    assert peek.has_met is False
