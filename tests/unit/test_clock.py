"""What is believed of another machine's clock."""

from __future__ import annotations

import pytest

from cachebus.base.clock import OtherClock


def test_the_first_answer_is_believed_and_a_better_one_too() -> None:
    clock = OtherClock()
    clock.learn(1000.0, 0.0, 1.0)
    assert clock.offset_s == 999.5
    clock.learn(1002.1, 2.0, 2.1)
    assert clock.offset_s == pytest.approx(1000.05)


@pytest.mark.parametrize("way", [-1, 1])
def test_an_answer_that_lay_about_changes_nothing_however_good_the_known_one_is(way: int) -> None:
    """Half of its way is not the way back: it is off by as much as it is unsure, and the known one by a little."""
    clock = OtherClock()
    clock.learn(1000.0001 + way * 0.00009, 0.0, 0.0002)
    known_s = clock.offset_s
    clock.learn(1000.5001, 0.5, 0.9)
    assert clock.offset_s == known_s
    clock.learn(1001.3999, 1.0, 1.4)
    assert clock.offset_s == known_s


def test_how_wrong_it_may_be_grows_with_the_distance_in_time_either_way() -> None:
    clock = OtherClock()
    assert clock.error_s(0.0) == float("inf")
    assert clock.earliest_s(0.0) == float("-inf")
    assert clock.shown_s(0.0) == 0.0
    clock.learn(1000.0, 9.0, 11.0)
    assert clock.error_s(11.0) == 1.0
    assert clock.error_s(71.0) == clock.error_s(-49.0) == pytest.approx(1.0 + 60 * OtherClock.DRIFT)
    assert clock.earliest_s(1001.0) == pytest.approx(11.0 - 1.0)
    assert clock.shown_s(11.0) == pytest.approx(1001.0 - 1.0)
    assert clock.earliest_s(941.0) == pytest.approx(-49.0 - 1.0 - 60 * OtherClock.DRIFT)


def test_a_clock_that_was_set_is_followed() -> None:
    clock = OtherClock()
    clock.learn(1000.0, 0.0, 0.0002)
    clock.learn(990.0, 1.0, 1.4)
    assert clock.offset_s == pytest.approx(988.8)


def test_a_clock_that_drifts_is_followed_by_answers_as_good_as_before() -> None:
    clock = OtherClock()
    for i in range(100):
        clock.learn(1000.0 + i * 1.0001, i, i + (0.0002 if i % 2 else 0.0003))
        assert clock.offset_s == pytest.approx(1000.0 + i * 0.0001, abs=0.0005)
