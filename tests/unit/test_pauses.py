"""What is not tried again at once."""

from __future__ import annotations

from cachebus.reading.cooldown import JITTER, KEYS_MAX
from cachebus.reading.pauses import Pauses
from cachebus.testing import FakeClock


def test_what_was_tried_is_left_for_about_the_pause() -> None:
    clock = FakeClock()
    pauses = Pauses(clock)
    assert not pauses.has("x")
    pauses.begin("x", 10)
    clock.advance(10 * (1 - JITTER) - 0.1)
    assert pauses.has("x")
    assert not pauses.has("y")
    clock.advance(20 * JITTER + 0.2)
    assert not pauses.has("x")
    assert len(pauses) == 0


def test_another_version_is_tried_at_once() -> None:
    pauses = Pauses(FakeClock())
    pauses.begin("x", 10, b"1")
    assert pauses.has("x", b"1")
    assert not pauses.has("x", b"2")
    pauses.begin("x", 10, b"2")
    assert not pauses.has("x", b"1")
    assert len(pauses) == 1


def test_of_too_many_the_latest_are_known() -> None:
    pauses = Pauses(FakeClock())
    for number in range(KEYS_MAX + 1):
        pauses.begin(str(number), 10)
    assert len(pauses) == KEYS_MAX
    assert not pauses.has("0")
    assert pauses.has("1")
