"""What is refused a lock, counted by looks."""

from __future__ import annotations

import pytest

from cachebus.consumers.worker.table_locks import FORGET_S, LockRefusals
from cachebus.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def refusals(clock: FakeClock) -> LockRefusals:
    return LockRefusals(clock=clock)


def refused(refusals: LockRefusals, *what: str, told: bool = False) -> bool:
    """Whether a look says so, after these."""
    for one in what:
        refusals.refused(one)
    return refusals.looked(told=told)


def test_twice_in_a_row_a_look_apart_is_told_until_it_passes(refusals: LockRefusals) -> None:
    assert not refused(refusals, "a", "a")
    assert not refused(refusals)
    assert refused(refusals, "a")
    assert refused(refusals)
    assert refusals.has_some
    refusals.passed("a")
    assert not refused(refusals)
    assert not refusals.has_some


def test_one_that_passes_in_between_counts_anew(refusals: LockRefusals) -> None:
    assert not refused(refusals, "a")
    refusals.passed("a")
    assert not refused(refusals, "a")


def test_what_passes_says_nothing_of_something_else(refusals: LockRefusals) -> None:
    assert not refused(refusals, "a")
    refusals.passed("b")
    assert not refused(refusals, "b")
    assert refused(refusals, "a")


def test_what_a_look_has_told_who_has_counts_no_more(refusals: LockRefusals) -> None:
    assert not refused(refusals, "a")
    assert not refused(refusals, "a", told=True)
    assert refusals.waited
    assert not refused(refusals, "a")


def test_what_is_never_tried_again_is_forgotten(refusals: LockRefusals, clock: FakeClock) -> None:
    assert not refused(refusals, "a")
    assert refused(refusals, "a")
    clock.advance(FORGET_S)
    assert not refused(refusals)
    assert not refusals.has_some
