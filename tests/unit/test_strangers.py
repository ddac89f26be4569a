"""When those are believed that answer at our addresses, and are of another cluster."""

from __future__ import annotations

import pytest

from cachebus.base.strangers import BELIEVED_S, BROKEN_OFF_S, Strangers
from cachebus.testing import FakeClock

STEP_S = BROKEN_OFF_S / 3


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def lasting(strangers: Strangers, clock: FakeClock, lasts_s: float) -> None:
    """Looks at which most are strange."""
    until_s = clock() + lasts_s
    strangers.note_round(most_are_strange=True)
    while clock() < until_s:
        clock.advance(STEP_S)
        strangers.note_round(most_are_strange=True)


def test_once_most_addresses_have_been_theirs_for_long_enough(clock: FakeClock) -> None:
    strangers = Strangers(clock)
    assert not strangers.are_believed
    lasting(strangers, clock, BELIEVED_S - STEP_S)
    assert not strangers.are_believed
    lasting(strangers, clock, STEP_S)
    assert strangers.are_believed
    strangers.note_round(most_are_strange=False)
    assert not strangers.are_believed


def test_one_answer_of_ours_begins_it_anew(clock: FakeClock) -> None:
    strangers = Strangers(clock)
    lasting(strangers, clock, BELIEVED_S - STEP_S)
    strangers.note_round(most_are_strange=False)
    lasting(strangers, clock, BELIEVED_S - STEP_S)
    assert not strangers.are_believed


def test_so_does_a_time_in_which_nobody_looked(clock: FakeClock) -> None:
    """Two short outages, an hour apart, are no long one."""
    strangers = Strangers(clock)
    lasting(strangers, clock, STEP_S)
    clock.advance(3600.0)
    lasting(strangers, clock, STEP_S)
    assert not strangers.are_believed
