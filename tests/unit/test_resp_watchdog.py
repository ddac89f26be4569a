"""The watchdog's arithmetic, on a loop whose time the test turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from cachebus.resp.watchdog import ConnectionProgress, Watchdog

TIMEOUT_S = 1.0


class Hands:
    """A loop that has nothing but `call_later`, a link, and a server that answers when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.answered = 0
        self.heard = 0
        self.written = 0
        self.left = 0
        self.expired_at: float | None = None
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self.dog = Watchdog(cast("Any", self), TIMEOUT_S, self._progress, self._expire)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        timer = (self.now + delay_s, callback)
        self._timers.append(timer)

        class Handle:
            def cancel(_) -> None:  # noqa: N805 - `self` is the loop here
                if timer in self._timers:
                    self._timers.remove(timer)

        return Handle()

    def ask(self, size: int = 10, *, leaves: int | None = None) -> None:
        """A question of so many bytes, of which some leave at once: all, unless told otherwise."""
        self.asked += 1
        self.written += size
        self.left += size if leaves is None else leaves
        if self.dog.asleep:
            self.dog.wake()

    def answer(self) -> None:
        """A whole answer arrives."""
        self.answered += 1
        self.heard += 1

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

    def _progress(self) -> ConnectionProgress:
        return ConnectionProgress(self.asked, self.answered, self.heard, self.written, self.left)

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
    hands.answer()
    hands.advance(TIMEOUT_S)
    assert hands.dog.asleep
    assert hands.timers == 0


def test_it_wakes_again() -> None:
    hands = Hands()
    hands.ask()
    hands.answer()
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
    hands.answer()
    hands.advance(20 * TIMEOUT_S)
    assert hands.expired_at is None


def test_bytes_that_arrive_are_a_sign_of_life_though_no_answer_is_whole() -> None:
    hands = Hands()
    hands.ask()
    for turn in range(100):
        hands.heard += 1
        hands.advance(turn * TIMEOUT_S * 0.9)
    assert hands.expired_at is None
    hands.advance(hands.now + TIMEOUT_S * 1.25)
    assert hands.expired_at is not None


def test_bytes_of_the_oldest_question_that_leave_are_a_sign_of_life() -> None:
    hands = Hands()
    hands.ask(1000, leaves=0)
    for turn in range(100):
        hands.left += 10
        hands.advance(turn * TIMEOUT_S * 0.9)
    assert hands.expired_at is None  # the last byte left just now: the answer is due from here on
    hands.advance(hands.now + TIMEOUT_S * 1.25)
    assert hands.expired_at is not None


def test_what_leaves_after_the_oldest_question_proves_nothing() -> None:
    """A system takes, and acknowledges, what is sent to a program that hangs."""
    hands = Hands()
    hands.ask()
    while hands.now < TIMEOUT_S * 1.25 and hands.expired_at is None:
        hands.advance(hands.now + 0.01)
        hands.ask(1000, leaves=500)
        hands.left += 500 if hands.now > 0.5 else 0
    assert hands.expired_at is not None


def test_the_question_behind_an_answered_one_is_watched_in_its_turn() -> None:
    """1. a small question and a big one are asked; 2. the small one is answered; 3. the big one goes on leaving."""
    hands = Hands()
    hands.ask()
    hands.ask(1000, leaves=0)
    hands.answer()
    for turn in range(50):
        hands.left += 10
        hands.advance(turn * TIMEOUT_S * 0.9)
    assert hands.expired_at is None
    hands.advance(hands.now + TIMEOUT_S * 1.25)  # it is stuck half way
    assert hands.expired_at is not None


def test_a_socket_that_takes_no_byte_is_given_up_though_more_is_asked_all_the_time() -> None:
    hands = Hands()
    hands.ask(1000, leaves=100)
    while hands.now < TIMEOUT_S * 1.25 and hands.expired_at is None:
        hands.advance(hands.now + 0.01)
        hands.ask(10, leaves=0)
    assert hands.expired_at is not None


Step = tuple[float, str]


@given(st.lists(st.tuples(st.floats(0.001, 0.7), st.sampled_from(["ask", "answer", "piece", "leave"])), max_size=60))
def test_it_expires_between_one_and_one_and_a_quarter_after_the_last_sign_of_life(steps: list[Step]) -> None:
    hands = Hands()
    asked_at: list[float] = []
    ends: list[int] = []
    signs = [0.0]
    now = 0.0
    for gap, what in steps:
        now += gap
        hands.advance(now)
        if hands.expired_at is not None:
            break
        due = hands.answered < hands.asked
        if what == "ask":
            hands.ask(10, leaves=0)
            asked_at.append(now)
            ends.append(hands.written)
        elif what == "answer" and due:
            hands.answer()
            signs.append(now)
        elif what == "piece":
            hands.heard += 1
            signs.append(now)
        elif what == "leave" and hands.left < hands.written:
            if due and hands.left < ends[hands.answered]:
                signs.append(now)
            hands.left += 5
    hands.advance(now + 3 * TIMEOUT_S)
    if hands.answered == hands.asked:
        assert hands.expired_at is None
        return
    assert hands.expired_at is not None
    last = max(asked_at[hands.answered], *signs)
    # A byte that leaves counts from the tick that finds it gone, hence the grain of one more.
    assert TIMEOUT_S - 1e-9 <= hands.expired_at - last <= TIMEOUT_S * 1.25 + 1e-9
