"""How many rows of a slot are fetched together: by what they take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.consumers.cdc.slot import peek as module
from cachebus.consumers.cdc.slot.peek import FAR, NEAR, PassedOver, Peek, Progress

SLICE_BYTES = 1000


class Cursor:
    """Over rows of these sizes, each with what those ahead of it take."""

    def __init__(self, sizes: list[int]) -> None:
        self._rows = [
            {
                "lsn": f"0/{at:X}",
                "data": bytes(size),
                "far_bytes": sum(sizes[at + 1 : at + 1 + FAR]),
                "near_bytes": sum(sizes[at + 1 : at + 1 + NEAR]),
            }
            for at, size in enumerate(sizes)
        ]
        self.fetched: list[list[int]] = []
        """The sizes of the rows of each fetch."""

    async def fetch(self, count: int, timeout: float) -> list[Any]:
        rows, self._rows = self._rows[:count], self._rows[count:]
        self.fetched.append([len(row["data"]) for row in rows])
        return rows


def begun(sizes: list[int]) -> tuple[Peek, Cursor]:
    peek: Any = Peek(Progress(), PassedOver(), lambda _: True)
    peek._cursor, peek._timeout_s = Cursor(sizes), 1.0
    return peek, peek._cursor


async def slices(sizes: list[int], limit: int) -> tuple[list[list[int]], Cursor]:
    peek, cursor = begun(sizes)
    found = []
    while not peek.over:
        found.append([len(row["data"]) for row in await peek.rows(limit)])
    return found, cursor


SIZES = st.one_of(st.integers(1, 20), st.integers(1, 3 * SLICE_BYTES))


@pytest.fixture(autouse=True, scope="module")
def _small_slices() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "SLICE_BYTES", SLICE_BYTES)
        yield


@given(st.lists(SIZES, max_size=60), st.integers(1, 40))
async def test_a_slice_is_bounded_in_rows_and_in_bytes_but_for_its_last_row(sizes: list[int], limit: int) -> None:
    found, cursor = await slices(sizes, limit)
    assert [size for one in found for size in one] == sizes
    assert all(len(one) <= limit and sum(one[:-1]) < SLICE_BYTES for one in found)
    assert all(len(one) <= 1 or sum(one) <= SLICE_BYTES for one in cursor.fetched)


async def test_small_rows_are_fetched_by_the_hundred_and_an_end_that_is_known_is_not_asked_for() -> None:
    found, cursor = await slices([1] * (1 + FAR), 2000)
    assert [len(one) for one in cursor.fetched] == [1, FAR]
    assert [len(one) for one in found] == [1 + FAR]


async def test_large_rows_behind_small_ones_are_fetched_one_by_one() -> None:
    _, cursor = await slices([1] * (1 + FAR + NEAR) + [SLICE_BYTES] * 20, 2000)
    assert [len(one) for one in cursor.fetched if SLICE_BYTES in one] == [1] * 20
    assert NEAR in map(len, cursor.fetched)
