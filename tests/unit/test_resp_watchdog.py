"""The watchdog's arithmetic, on a loop whose time the test turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.resp.watchdog import Watchdog

TIMEOUT_S = 1.0


class Hands:
    """A loop that has nothing but `call_later`, and a server that answers when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.answered = 0
        self.expired_at: float | None = None
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self.dog = Watchdog(cast("Any", self), TIMEOUT_S, lambda: (self.asked, self.answered), self._expire)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        timer = (self.now + delay_s, callback)
        self._timers.append(timer)

        class Handle:
            def cancel(_) -> None:  # noqa: N805 - `self` is the loop here
                if timer in self._timers:
                    self._timers.remove(timer)

        return Handle()

    def ask(self) -> None:
        self.asked += 1
        if self.dog.asleep:
            self.dog.wake()

    def advance(self, to: float) -> None:
        while self._timers and min(self._timers)[0] <= to:
            timer = min(self._timers)
            self._timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]()
        self.now = to

    @property
    def timers(self) -> int:
        return len(self._timers)

    def _expire(self) -> None:
        self.expired_at = self.now


def test_a_lone_question_expires_after_its_time() -> None:
    hands = Hands()
    hands.ask()
    hands.advance(TIMEOUT_S)
    assert hands.expired_at is None
    hands.advance(TIMEOUT_S * 1.25)
    assert hands.expired_at is not None


def test_nothing_asked_nothing_watched() -> None:
    hands = Hands()
    hands.ask()
    hands.answered = 1
    hands.advance(TIMEOUT_S)
    assert hands.dog.asleep
    assert hands.timers == 0


def test_it_wakes_again() -> None:
    hands = Hands()
    hands.ask()
    hands.answered = 1
    hands.advance(10.0)
    hands.ask()
    hands.advance(10.0 + TIMEOUT_S)
    assert hands.expired_at is None
    hands.advance(10.0 + TIMEOUT_S * 1.25)
    assert hands.expired_at is not None


def test_stop_leaves_no_timer() -> None:
    hands = Hands()
    hands.ask()
    hands.dog.stop()
    assert hands.timers == 0


def test_a_held_loop_is_not_the_servers_silence() -> None:
    """1. asked; 2. the loop is held for ten time-outs, so one late tick comes; 3. the reply is read; 4. no expiry."""
    hands = Hands()
    hands.ask()
    late = min(hands._timers)
    hands._timers.remove(late)
    hands.now = 10 * TIMEOUT_S
    late[1]()
    hands.answered = 1
    hands.advance(20 * TIMEOUT_S)
    assert hands.expired_at is None


@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0.0, 2.0)), min_size=1, max_size=60))
def test_it_expires_between_one_and_one_and_a_quarter(steps: list[tuple[float, float]]) -> None:
    """Questions are asked at random; each is answered, in order, after its own delay."""
    hands = Hands()
    events: list[tuple[float, bool]] = []
    asked_at, answered_at, last = [], [], 0.0
    now = 0.0
    for gap, delay in steps:
        now += gap
        last = max(last, now + delay)  # replies come in order
        asked_at.append(now)
        answered_at.append(last)
        events += [(now, True), (last, False)]
    for at, asks in sorted(events):
        hands.advance(at)
        if hands.expired_at is not None:
            break
        if asks:
            hands.ask()
        else:
            hands.answered += 1
    ages = [answered - asked for asked, answered in zip(asked_at, answered_at, strict=True)]
    if hands.expired_at is None:
        assert max(ages) <= TIMEOUT_S * 1.25 + 1e-9
    else:
        waiting = [a for a, b in zip(asked_at, answered_at, strict=True) if a <= hands.expired_at < b]
        assert hands.expired_at - min(waiting) == pytest.approx(TIMEOUT_S * 1.125, rel=0.12)
