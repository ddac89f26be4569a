"""How many rows of a slot are fetched together: by what they take."""

from __future__ import annotations

from cachebus.consumers.cdc.slot.peek import FIRST_ROWS, SLICE_BYTES, Slices


def rows(count: int, size_bytes: int) -> list[dict[str, bytes]]:
    return [{"data": bytes(size_bytes)}] * count


def test_small_rows_are_fetched_by_the_thousand() -> None:
    slices = Slices()
    for _ in range(6):
        slices.fetched(rows(slices.rows(2000), 200))
    assert slices.rows(2000) == 2000


def test_large_ones_are_fetched_one_by_one_and_small_ones_again_together() -> None:
    slices = Slices()
    slices.fetched(rows(FIRST_ROWS, 4 << 20))
    assert slices.rows(2000) == 2
    slices.fetched(rows(2, 64 << 20))
    assert slices.rows(2000) == 1
    for _ in range(6):
        slices.fetched(rows(slices.rows(2000), 200))
    assert slices.rows(2000) == 2000


def test_a_slice_that_was_not_full_tells_nothing_of_the_next() -> None:
    slices = Slices()
    slices.fetched(rows(3, 200))
    assert slices.rows(2000) == FIRST_ROWS
    assert FIRST_ROWS * 4 * 200 < SLICE_BYTES
