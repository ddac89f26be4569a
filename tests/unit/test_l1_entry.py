"""The shared small numbers, and what an entry costs."""

from __future__ import annotations

import gc
import math
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.l1 import ENTRY_OVERHEAD_BYTES, L1, Entry, Group, grid, shared_int, size_class

DEADLINES = st.floats(0, 1e9)


@given(DEADLINES)
def test_a_deadline_is_rounded_down_by_less_than_a_64th_of_a_second(deadline: float) -> None:
    assert deadline - 1 / 64 < grid(deadline) <= deadline


@given(DEADLINES, st.floats(0.5, 1e8))
def test_a_deadline_is_rounded_down_by_at_most_a_32nd_of_its_span(deadline: float, span_s: float) -> None:
    assert deadline - max(span_s / 32, 1 / 64) <= grid(deadline, span_s) <= deadline


def test_equal_deadlines_are_one_object() -> None:
    assert grid(100.0) is grid(100.01)
    assert grid(7300.0, 3600.0) is grid(7310.0, 3500.0)
    assert grid(math.inf, math.inf) == math.inf


def test_the_memos_are_bounded() -> None:
    for number in range(10_000):
        assert grid(number * 1.0) == number
        assert shared_int(number + 10**9) == number + 10**9


@given(st.integers(0, 1 << 50))
def test_a_size_is_rounded_up_by_at_most_a_16th(size: int) -> None:
    assert size <= size_class(size) <= size + size / 16
    assert size_class(size) is size_class(size)


def test_sizes_fall_into_few_classes() -> None:
    assert len({size_class(size) for size in range(1 << 16)}) < 300


def test_an_entry_costs_no_more_than_the_overhead_that_is_told() -> None:
    count = 25_000
    rng = random.Random(5)
    keys = [f"t{rng.randrange(50)}\x1fdoc\x1f{rng.getrandbits(60):x}\x1e\x1e\x1e" for _ in range(2 * count)]
    group = Group(0, "doc", 10.0, 0, True)
    gc.collect()
    tracemalloc.start()
    try:
        l1 = L1(count, 1 << 40)
        for number, key in enumerate(keys):
            now_s = 1000 + number / 2000
            expires_s = grid(now_s + 3600 * rng.uniform(0.9, 1.1), 3600.0)
            seq = shared_int(10**6 + number // 20)
            l1.put(
                Entry(
                    key, None, group, expires_s, seq, grid(now_s + 2, 2.0), expires_s, size_class(rng.randrange(5000))
                )
            )
        taken_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(l1) == count
    assert taken_bytes / count <= ENTRY_OVERHEAD_BYTES


@pytest.mark.parametrize("name", ["key", "value", "group", "fast_until_s", "seq", "read_until_s", "expires_s", "size"])
def test_an_entry_has_the_fields_that_the_hit_path_reads(name: str) -> None:
    group = Group(1, "doc", 10.0, 2, False)
    entry = Entry("k", "v", group, 1.0, 3, 2.0, 4.0, 5)
    expected = {
        "key": "k",
        "value": "v",
        "group": group,
        "fast_until_s": 1.0,
        "seq": 3,
        "read_until_s": 2.0,
        "expires_s": 4.0,
    }
    assert getattr(entry, name) == (expected | {"size": 5})[name]
    assert (entry.extra, entry.freq) == (None, 0)
    assert entry != Entry("k", "v", group, 1.0, 3, 2.0, 4.0, 5)
    assert not gc.is_tracked(entry)
