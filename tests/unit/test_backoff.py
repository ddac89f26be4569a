"""The pauses before reconnecting."""

from __future__ import annotations

from cachebus.base.backoff import RECONNECT_FIRST_S, RECONNECT_MAX_S, Attempts, Backoff


def test_pauses_double_to_their_longest_are_jittered_and_begin_anew() -> None:
    pauses = Backoff(RECONNECT_FIRST_S, RECONNECT_MAX_S)
    assert (RECONNECT_FIRST_S, RECONNECT_MAX_S) == (0.05, 2.0)
    for most_s in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        drawn = [pauses.next_s() for _ in range(200)]
        assert most_s / 2 <= min(drawn) < most_s * 0.6
        assert most_s * 0.9 < max(drawn) <= most_s
        pauses.longer()
    pauses.reset()
    assert pauses.next_s() <= RECONNECT_FIRST_S


def test_each_part_has_its_own() -> None:
    l2, bus = (Backoff(RECONNECT_FIRST_S, RECONNECT_MAX_S) for _ in range(2))
    for _ in range(6):
        l2.longer()
    assert bus.next_s() <= RECONNECT_FIRST_S


def test_what_is_lost_soon_after_it_was_made_is_waited_for_as_what_could_not_be_made() -> None:
    now_s = 100.0
    attempts = Attempts(lambda: now_s)
    assert attempts.wait_s == 0
    for _ in range(8):
        now_s += attempts.wait_s
        attempts.succeeded()
        assert attempts.made
        now_s += RECONNECT_MAX_S * 0.9
        attempts.succeeded()  # still: it grows no younger by that
        attempts.failed()
        assert not attempts.made
    assert attempts.wait_s >= RECONNECT_MAX_S / 2
    attempts.succeeded()
    now_s += RECONNECT_MAX_S
    attempts.failed()
    assert attempts.wait_s <= RECONNECT_FIRST_S
    attempts.failed()
    attempts.failed()
    assert attempts.wait_s > RECONNECT_FIRST_S
