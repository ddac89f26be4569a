"""Receipts: short strings that come back as they went, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.core.ports import Position
from cachebus.errors import InvalidationFailed, L2Unavailable, ProtocolMismatch
from cachebus.keys.plan import Plan
from cachebus.receipt import Receipt, disabled_receipt, joined, pending_receipt, position_of
from cachebus.writing.every_shard import invalidate_in_every_shard

receipts = st.builds(
    Receipt, st.integers(0, 99_999), st.text("0123456789abcdef", min_size=16, max_size=16), st.integers(0, 10**16 - 1)
)


@given(receipts)
def test_it_comes_back_as_it_went(receipt: Receipt) -> None:
    text = str(receipt)
    assert len(text) <= 5 + 1 + 16 + 1 + 16
    assert text.isascii()
    assert text.isprintable()
    back = Receipt.parse(text)
    assert back == receipt
    assert str(back) == text
    assert back.position == Position(receipt.epoch.encode(), receipt.seq)


@given(st.text() | st.from_regex(r"[0-9]+\.[0-9a-f]{16}\.[0-9]+") | st.text("0123456789abcdef. -٣\n", max_size=40))
def test_nothing_else_is_read(text: str) -> None:
    try:
        receipt = Receipt.parse(text)
    except ValueError as error:
        assert "SHARD.EPOCH.SEQ" in str(error)
        assert len(str(error)) < 100, "which does not repeat what came from outside"
    else:
        shard, epoch, seq = text.split(".")
        assert (receipt.shard, receipt.epoch, receipt.seq) == (int(shard), epoch, int(seq))
        assert text.isascii()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "3.0123456789abcdef",
        "3.0123456789abcdef.",
        ".0123456789abcdef.1",
        "3.0123456789ABCDEF.1",
        "3.0123456789abcde.1",
        "3.0123456789abcdef0.1",
        "3.0123456789abcdef.-1",
        "-3.0123456789abcdef.1",
        "3.0123456789abcdef.1\n",
        " 3.0123456789abcdef.1",
        "٣.0123456789abcdef.1",
        "3.0123456789abcdef.1e5",
        "123456.0123456789abcdef.1",
        "3.0123456789abcdef." + "9" * 17,
        None,
        7,
        b"3.0123456789abcdef.1",
    ],
)
def test_these_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="not a receipt"):
        Receipt.parse(text)  # type: ignore[arg-type]


def test_a_receipt_may_be_made_again_from_a_receipts_own_text() -> None:
    receipt = Receipt(1, "f" * 16, 9, targets={"doc": 1})
    assert Receipt.parse(receipt) == Receipt(1, "f" * 16, 9)  # type: ignore[arg-type]


def test_one_of_several_shards_is_read_back_with_all_its_parts() -> None:
    receipt = joined([Receipt(0, "a" * 16, 3, confirmed=("n", "m")), Receipt(2, "b" * 16, 7, lapsed=("m",))], [1])
    assert str(receipt) == f"0.{'a' * 16}.3,2.{'b' * 16}.7,1.failed"
    assert (receipt.confirmed, receipt.lapsed, receipt.failed) == (("n",), ("m",), (1,))
    parsed = Receipt.parse(str(receipt))
    assert [part.seq for part in parsed.parts] == [3, 7]
    assert [position_of(parsed, shard) for shard in (0, 2)] == [part.position for part in receipt.parts]
    for one in (receipt, parsed, str(receipt)):
        with pytest.raises(ValueError, match="failed in shard 1"):
            position_of(one, 1)
        with pytest.raises(ValueError, match="nothing of shard 3"):
            position_of(one, 3)


def test_one_that_is_pending_stands_for_nothing_as_text_either() -> None:
    receipt = Receipt(3, "0" * 16, 0, status="pending", stored=False)
    several = joined([Receipt(0, "a" * 16, 3), receipt])
    for one in (receipt, str(receipt), Receipt.parse(str(receipt)), several, str(several)):
        with pytest.raises(ValueError, match="a pending receipt stands for nothing"):
            position_of(one, 3)
    assert position_of(str(several), 0) == Receipt(0, "a" * 16, 3).position
    assert Receipt.parse(str(receipt)) == receipt
    for text in ("3.failed", "3.pending,x", "3.failed,4.failed", ","):
        with pytest.raises(ValueError, match="not a receipt"):
            Receipt.parse(text)


def test_it_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        Receipt(1, "f" * 16, 9).seq = 10  # type: ignore[misc]


def test_one_of_a_disabled_cache_stands_for_nothing_but_where_each_read_asks_the_source() -> None:
    receipt = disabled_receipt(3)
    several = joined([disabled_receipt(2), receipt])
    assert (receipt.status, receipt.stored, str(receipt)) == ("disabled", False, "3.disabled")
    assert (several.status, several.stored, str(several)) == ("disabled", False, "2.disabled,3.disabled")
    assert joined([receipt, pending_receipt(4)]).status == "pending"
    assert joined([receipt, Receipt(4, "a" * 16, 3)]).status == "disabled"
    for one in (receipt, str(receipt), several, str(several)):
        assert Receipt.parse(str(one)).status == "disabled"
        with pytest.raises(ValueError, match="a cache that was off told nobody of its write"):
            position_of(one, 3)
        assert position_of(one, 3, enabled=False) is None
    with pytest.raises(ValueError, match="a pending receipt stands for nothing"):
        position_of(pending_receipt(3), 3, enabled=False)


@pytest.mark.parametrize(
    "error", [InvalidationFailed("gone"), L2Unavailable("away"), ProtocolMismatch("other"), OSError()]
)
async def test_whatever_fails_one_shard_the_receipts_of_the_others_are_kept(error: Exception) -> None:
    async def apply(plan: Plan) -> Receipt:
        if plan.shard in failing:
            raise error
        return Receipt(plan.shard, "a" * 16, 7)

    failing = {1}
    with pytest.raises(InvalidationFailed) as raised:
        await invalidate_in_every_shard([Plan(0), Plan(1), Plan(2)], apply)
    assert str(raised.value.receipt) == f"0.{'a' * 16}.7,2.{'a' * 16}.7,1.failed"
    assert raised.value.__cause__ is error
    failing = {0, 1, 2}
    with pytest.raises(type(error)) as raised_all:
        await invalidate_in_every_shard([Plan(0), Plan(1), Plan(2)], apply)
    assert raised_all.value is error
