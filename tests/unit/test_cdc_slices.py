"""How many rows of a slot are fetched together: by what they take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.consumers.cdc.slot import slices as module
from cachebus.consumers.cdc.slot.slices import FAR, NEAR, Slices
from tests.support.caches import until

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
        self.trouble: Exception | None = None

    async def fetch(self, count: int, timeout: float) -> list[Any]:
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise self.trouble
        rows, self._rows = self._rows[:count], self._rows[count:]
        self.fetched.append([len(row["data"]) for row in rows])
        return rows


async def slices(sizes: list[int], limit: int) -> tuple[list[list[int]], Cursor]:
    """The sizes of the rows of each slice."""
    cursor = Cursor(sizes)
    read, found = Slices(cursor, 1.0), []
    while not read.over:
        found.append([len(row["data"]) for row in await read.next(limit)])
    return found, cursor


async def fetched_ahead(read: Slices, limit: int) -> None:
    read.fetch_ahead(limit)
    await until(lambda: not read.is_fetching)


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


@given(st.lists(SIZES, max_size=60), st.integers(1, 40))
async def test_what_is_fetched_ahead_comes_next_and_takes_no_more_than_a_slice(sizes: list[int], limit: int) -> None:
    cursor = Cursor(sizes)
    read, found = Slices(cursor, 1.0), list[list[int]]()
    while not read.over:
        found.append([len(row["data"]) for row in await read.next(limit)])
        before = len(cursor.fetched)
        await fetched_ahead(read, limit)
        assert sum(map(sum, cursor.fetched[before:])) <= SLICE_BYTES
    assert [size for one in found for size in one] == sizes
    assert all(len(one) <= limit for one in found)


async def test_there_is_more_until_what_was_fetched_ahead_is_taken() -> None:
    read = Slices(Cursor([1] * 5), 1.0)
    assert len(await read.next(2)) == 2
    await fetched_ahead(read, 9)
    assert not read.over
    assert len(await read.next(1)) == 3
    assert read.over


async def test_an_error_of_what_is_fetched_ahead_is_told_where_it_would_be_taken() -> None:
    cursor = Cursor([1] * 5)
    read = Slices(cursor, 1.0)
    assert len(await read.next(2)) == 2
    cursor.trouble = OSError("gone")
    await fetched_ahead(read, 2)
    with pytest.raises(OSError, match="gone"):
        await read.next(2)
    await fetched_ahead(read, 2)
    await read.drop_ahead()  # nobody takes it, and nobody is told


async def test_what_is_fetched_ahead_is_waited_for_where_it_is_dropped_or_given_up() -> None:
    cursor = Cursor([1] * 50)
    read = Slices(cursor, 1.0)
    assert len(await read.next(2)) == 2
    read.fetch_ahead(2)
    await read.drop_ahead()
    assert sum(map(len, cursor.fetched)) == 4
    read.fetch_ahead(40)
    await read.drop_ahead(at_once=True)
    assert sum(map(len, cursor.fetched)) == 4
    assert not read.is_fetching


async def test_small_rows_are_fetched_by_the_hundred_and_an_end_that_is_known_is_not_asked_for() -> None:
    found, cursor = await slices([1] * (1 + FAR), 2000)
    assert [len(one) for one in cursor.fetched] == [1, FAR]
    assert [len(one) for one in found] == [1 + FAR]


async def test_large_rows_behind_small_ones_are_fetched_one_by_one() -> None:
    _, cursor = await slices([1] * (1 + FAR + NEAR) + [SLICE_BYTES] * 20, 2000)
    assert [len(one) for one in cursor.fetched if SLICE_BYTES in one] == [1] * 20
    assert NEAR in map(len, cursor.fetched)
