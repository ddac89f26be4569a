"""What a publisher remembers of its invalidations, for the case that who acknowledged them was deposed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.base.clock import OtherClock
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import AT_ONCE, Plan
from cachebus.observe import Counters
from cachebus.testing import FakeClock
from cachebus.writing.resend_buffer import ENTRY_OVERHEAD_BYTES, KEEP_S, ResendBuffer, born_s, packed
from tests.support.logs import told as lines_told

space = Keyspace(1)
OLD, NEW, NEWER = b"0" * 16, b"1" * 16, b"2" * 16
EVER = float("-inf")
ROOMY = 1 << 20


def plan(*ids: str, scopes: Iterable[str] = (), shard: int = 0) -> Plan:
    made = Plan(shard)
    made.keys += [space.key("d", each, "t") for each in ids]
    made.scopes += scopes
    return made


def filled(clock: FakeClock, max_bytes: int = ROOMY, counters: Counters | None = None) -> ResendBuffer:
    return ResendBuffer(clock, space, max_bytes, counters or Counters())


def repeated(
    buffer: ResendBuffer, epoch: bytes = NEW, since_s: float = EVER, shard: int = 0, error: Exception | None = None
) -> tuple[list[str], list[str]]:
    """Ids and names of what is to be repeated, which is done, or fails with an error at the first of it."""
    keys: list[str] = []
    scopes: list[str] = []
    with buffer.lost(shard, epoch, since_s) as plans:
        for each in plans:
            keys += [key.resource_id for key in each.keys]
            scopes += each.scopes
            if error is not None:
                raise error
    return keys, scopes


def test_what_was_acknowledged_in_other_epochs_is_gathered_without_repetitions() -> None:
    clock = FakeClock()
    buffer = filled(clock)
    buffer.note(plan("a", "b", scopes=("n",)), OLD, clock())
    buffer.note(plan("b", "c", scopes=("n", "m")), OLD, clock())
    buffer.note(plan("other shard", shard=1), OLD, clock())
    buffer.note(plan("heard by the new one"), NEW, clock())
    assert repeated(buffer, shard=2) == ([], [])
    assert repeated(buffer) == (["a", "b", "c"], ["n", "m"])


def test_it_is_repeated_once_and_what_is_noted_meanwhile_stays() -> None:
    clock = FakeClock()
    buffer = filled(clock)
    buffer.note(plan("a"), OLD, clock())
    with buffer.lost(0, NEW, EVER) as plans:
        buffer.note(plan("b"), OLD, clock() - 1)  # called before, acknowledged only now
        for each in plans:
            buffer.note(each, NEWER, clock())  # repeated, in an epoch that began meanwhile
    assert repeated(buffer) == (["b", "a"], []), "the later one, of yet another epoch"
    assert repeated(buffer) == ([], [])


def test_what_could_not_be_repeated_is_kept_in_its_order() -> None:
    clock = FakeClock()
    buffer = filled(clock)
    for each in "ab":
        buffer.note(plan(each), OLD, clock())
    before = buffer.size_bytes
    with pytest.raises(OSError, match="away"):
        repeated(buffer, error=OSError("away"))
    assert (len(buffer), buffer.size_bytes) == (2, before)
    assert repeated(buffer) == (["a", "b"], [])
    assert (len(buffer), buffer.size_bytes) == (0, 0)


def test_what_was_repeated_before_a_failure_is_not_repeated_again() -> None:
    """Else a buffer that takes longer than a connection lasts would never be through."""
    clock = FakeClock()
    buffer = filled(clock)
    for at in range(0, 3 * AT_ONCE, 100):
        buffer.note(plan(*map(str, range(at, at + 100)), scopes=["n"]), OLD, clock())
    steps = []
    for _ in range(4):
        with suppress(OSError), buffer.lost(0, NEW, EVER) as plans:
            steps.append(len(next(plans).keys))
            next(plans, None)
            raise OSError("away")
    assert steps == [AT_ONCE, AT_ONCE, AT_ONCE, 300], "the entry at the end of each is begun anew"
    assert (len(buffer), buffer.size_bytes) == (0, 0)


def test_an_entry_that_was_repeated_in_part_is_kept_whole() -> None:
    clock = FakeClock()
    buffer = filled(clock)
    buffer.note(plan("a"), OLD, clock())
    buffer.note(plan(*map(str, range(AT_ONCE + 1))), OLD, clock())
    with buffer.lost(0, NEW, EVER) as plans:
        assert len(next(plans).keys) == AT_ONCE
        assert [key.resource_id for key in next(plans).keys] == [str(AT_ONCE - 1), str(AT_ONCE)]
    assert len(buffer) == 1, "the last plan may not have been repeated"
    assert len(repeated(buffer)[0]) == AT_ONCE + 1


def test_what_could_not_be_repeated_yet_does_not_grow_too_old_for_it() -> None:
    clock = FakeClock(100.0)
    buffer = filled(clock)
    buffer.note(plan("a"), OLD, clock())
    buffer.note(plan("b", shard=1), OLD, clock())
    with pytest.raises(OSError, match="away"):
        repeated(buffer, error=OSError("away"))
    clock.advance(2 * KEEP_S)
    assert repeated(buffer, shard=1) == ([], []), "that has"
    assert repeated(buffer) == (["a"], [])
    buffer.note(plan("c"), OLD, clock())
    with pytest.raises(OSError, match="away"):
        repeated(buffer, error=OSError("away"))
    assert repeated(buffer, NEWER, since_s=clock() + 0.0) == (["c"], [])
    buffer.note(plan("d"), OLD, clock())
    with pytest.raises(OSError, match="away"):
        repeated(buffer, error=OSError("away"))
    clock.advance(1)
    assert repeated(buffer, NEWER, since_s=clock()) == ([], []), "an epoch that was born later lacks nothing of it"
    clock.advance(KEEP_S)
    buffer.forget_old()
    assert not len(buffer)


def test_a_call_that_began_before_the_epoch_needs_no_repeating_there_but_perhaps_in_another() -> None:
    clock = FakeClock(100.0)
    buffer = filled(clock)
    buffer.note(plan("before"), OLD, 90.0)
    buffer.note(plan("at birth"), OLD, 95.0)
    assert repeated(buffer, since_s=95.0) == (["at birth"], [])
    assert repeated(buffer, NEWER, since_s=80.0) == (["before"], [])


def test_a_birth_that_lies_ahead_says_nothing() -> None:
    """The server's clock was set back since."""
    clock = FakeClock(100.0)
    buffer = filled(clock)
    buffer.note(plan("a"), OLD, 90.0)
    assert repeated(buffer, since_s=101.0) == (["a"], [])


def test_a_birth_on_the_servers_clock_is_told_on_ours() -> None:
    clock = OtherClock()
    assert born_s(5_000_000, clock) == EVER, "nothing is known of that clock"
    clock.learn(1_000.0, 10.0, 10.2)
    assert born_s(0, clock) == EVER, "nothing is known of the birth"
    assert born_s(1_000_000_000, clock) == pytest.approx(10.1 - 0.1, abs=0.001)


def test_what_is_older_than_a_minute_is_forgotten_at_each_note_and_when_asked() -> None:
    clock = FakeClock()
    buffer = filled(clock)
    buffer.note(plan("old"), OLD, clock())
    clock.advance(KEEP_S / 2)
    buffer.note(plan("young"), OLD, clock())
    clock.advance(KEEP_S / 2 + 1)
    buffer.note(plan("new"), OLD, clock())
    assert len(buffer) == 2
    clock.advance(KEEP_S / 2)
    buffer.forget_old()
    assert len(buffer) == 1
    clock.advance(KEEP_S)
    buffer.forget_old()
    assert (len(buffer), buffer.size_bytes) == (0, 0)


def test_much_is_repeated_in_parts() -> None:
    clock = FakeClock()
    buffer = filled(clock)
    for at in range(0, 3 * AT_ONCE, 100):
        buffer.note(plan(*map(str, range(at, at + 100)), scopes=[str(at)]), OLD, clock())
    with buffer.lost(0, NEW, EVER) as plans:
        found = list(plans)
    assert [len(each.keys) for each in found] == [AT_ONCE] * 3 + [0], "the last has the last name"
    assert [key.resource_id for each in found for key in each.keys] == list(map(str, range(3 * AT_ONCE)))
    assert [name for each in found for name in each.scopes] == [str(at) for at in range(0, 3 * AT_ONCE, 100)]
    buffer.note(plan(*map(str, range(3 * AT_ONCE)), scopes=map(str, range(AT_ONCE + 1))), OLD, clock())
    with buffer.lost(0, NEW, EVER) as plans:
        assert [(len(each.keys), len(each.scopes)) for each in plans] == [(500, 0)] * 3 + [(0, 500), (0, 1)]


def test_too_much_loses_the_oldest_which_is_counted_and_told_once_a_minute() -> None:
    clock, counters = FakeClock(), Counters()
    buffer = filled(clock, 10 * (ENTRY_OVERHEAD_BYTES + len(packed(plan("00")))), counters)
    with lines_told("WARNING") as said:
        for at in range(14):
            buffer.note(plan(f"{at:02}"), OLD, clock())
        clock.advance(KEEP_S - 1)
        buffer.note(plan("14"), OLD, clock())
        assert counters.resend_dropped == 5
        assert len([line for line in said if "resend_max_bytes" in line]) == 1
        assert repeated(buffer)[0] == [f"{at:02}" for at in range(5, 15)]
        clock.advance(2)
        for at in range(11):
            buffer.note(plan(f"{at:02}"), OLD, clock())
        assert len([line for line in said if "resend_max_bytes" in line]) == 2


def test_what_went_by_its_age_is_not_counted_as_dropped() -> None:
    clock, counters = FakeClock(), Counters()
    buffer = filled(clock, ENTRY_OVERHEAD_BYTES + 100, counters)
    for _ in range(5):
        buffer.note(plan("a"), OLD, clock())
        clock.advance(KEEP_S + 1)
    assert counters.resend_dropped == 0


def test_one_that_is_larger_than_all_the_room_is_dropped_itself() -> None:
    clock, counters = FakeClock(), Counters()
    buffer = filled(clock, 1000, counters)
    buffer.note(plan(*map(str, range(1000))), OLD, clock())
    assert (len(buffer), buffer.size_bytes, counters.resend_dropped) == (0, 0, 1)


def test_without_room_nothing_is_kept_counted_or_told() -> None:
    clock, counters = FakeClock(), Counters()
    buffer = filled(clock, 0, counters)
    with lines_told("WARNING") as said:
        buffer.note(plan("a"), OLD, clock())
    assert (len(buffer), counters.resend_dropped, said) == (0, 0, [])
    assert repeated(buffer) == ([], [])


def test_repeating_a_full_buffer_drops_nothing() -> None:
    clock, counters = FakeClock(), Counters()
    buffer = filled(clock, 4 * (ENTRY_OVERHEAD_BYTES + len(packed(plan("0")))), counters)
    for at in range(4):
        buffer.note(plan(str(at)), OLD, clock())
    with buffer.lost(0, NEW, EVER) as plans:
        for each in plans:
            buffer.note(each, NEW, clock())
    assert counters.resend_dropped == 0
    assert len(buffer) == 1


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
ids = st.tuples(words, words, words, *[st.none() | words] * 3)


@given(st.lists(ids, max_size=8), st.lists(words, max_size=5))
def test_what_is_kept_small_comes_back_as_it_was(keys: list[tuple[Any, ...]], scopes: list[str]) -> None:
    made = Plan(0)
    made.keys += [space.key(*each) for each in keys]
    made.scopes += scopes
    clock = FakeClock()
    buffer = filled(clock)
    buffer.note(made, OLD, clock())
    with buffer.lost(0, NEW, EVER) as plans:
        found = list(plans)
    told = [(key.l1, key.l2, key.scopes, key.shard) for each in found for key in each.keys]
    assert told == list(dict.fromkeys((key.l1, key.l2, key.scopes, key.shard) for key in made.keys))
    assert [name for each in found for name in each.scopes] == list(dict.fromkeys(scopes))
    assert msgspec.msgpack.decode(packed(made)) == [[key.l1 for key in made.keys], scopes]


def test_what_is_repeated_again_and_again_grows_no_younger() -> None:
    """A failover that goes back and forth would have one repeated for ever, which removes what was set since."""
    clock = FakeClock()
    buffer = filled(clock)
    buffer.note(plan("a"), OLD, clock())
    for epoch in (NEW, OLD) * 10:
        clock.advance(KEEP_S / 4)
        with buffer.lost(0, epoch, EVER) as plans:
            for each in plans:
                buffer.note(each, epoch, clock())
    assert not len(buffer)
