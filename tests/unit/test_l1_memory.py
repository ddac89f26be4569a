"""L1 against a plain model, and what each of its bounds promises."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cachebus.l1 import L1, Entry, Group

GROUP = Group(0, "doc", 10.0, 0, True)
MANY_BYTES = 1 << 40


def entry(key: str, value: object = None, size: int = 10, seq: int = 0) -> Entry:
    """An entry of which only the key matters, unless said otherwise."""
    return Entry(key, value, GROUP, 0.0, seq, 0.0, 0.0, size)


def read(l1: L1, key: str) -> object:
    """What the hit path does."""
    found = l1.entries.get(key)
    if found is None:
        return None
    if found.freq < 3:
        found.freq += 1
    return found.value


def filled(count: int, max_entries: int | None = None) -> L1:
    """An L1 that holds the keys "0" to count - 1, their number as value and seq."""
    l1 = L1(count if max_entries is None else max_entries, MANY_BYTES)
    for number in range(count):
        assert l1.put(entry(str(number), number, seq=number))
    return l1


def ticking(step_s: float = 0.0001) -> Callable[[], float]:
    """A clock that goes on by `step_s` whenever it is read."""
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += step_s
        return now_s

    return clock


class L1Machine(RuleBasedStateMachine):
    """Whatever is done in whatever order, L1 holds the newest value of a key or none, within its bounds."""

    keys = st.integers(0, 40).map(str)
    sizes = st.integers(0, 40)

    @initialize(max_entries=st.integers(0, 20), max_bytes=st.sampled_from([0, 100, 320, MANY_BYTES]))
    def make(self, max_entries: int, max_bytes: int) -> None:
        self.l1 = L1(max_entries, max_bytes)
        self.largest_bytes = max_bytes // 8 if max_entries and max_bytes else -1
        self.newest: dict[str, int] = {}
        self.version = 0
        self.sweep: Iterator[int] | None = None
        self.doomed: set[int] = set()

    @rule(key=keys, size=sizes)
    def put(self, key: str, size: int) -> None:
        was_held = key in self.l1.entries
        self.version += 1
        self.newest[key] = self.version
        held = self.l1.put(entry(key, self.version, size, self.version))
        assert held == (key in self.l1.entries)
        if size > self.largest_bytes:
            assert not held
        elif not was_held:
            assert held

    @rule(keys=st.lists(keys, min_size=1, max_size=60))
    def read_or_load(self, keys: list[str]) -> None:
        for key in keys:
            if read(self.l1, key) is None:
                self.put(key, 10)

    @rule(key=keys)
    def remove(self, key: str) -> None:
        was_held = key in self.l1.entries
        assert self.l1.remove(key) == was_held
        assert not self.l1.remove(key)
        self.newest.pop(key, None)

    @rule()
    def clear(self) -> None:
        self.l1.clear()
        assert len(self.l1) == self.l1.bytes == 0

    @precondition(lambda self: self.sweep is None)
    @rule(divisor=st.integers(1, 4))
    def start_sweep(self, divisor: int) -> None:
        limit = self.version

        def is_dead(held: Entry) -> bool:
            return held.seq <= limit and held.seq % divisor == 0

        self.doomed = {held.seq for held in self.l1.entries.values() if is_dead(held)}

        self.sweep = self.l1.sweep(is_dead, ticking(0.001), 0.001)
        next(self.sweep)

    @precondition(lambda self: self.sweep is not None)
    @rule()
    def go_on_sweeping(self) -> None:
        assert self.sweep is not None
        if next(self.sweep, None) is None:
            self.sweep = None
            assert not self.doomed & {held.seq for held in self.l1.entries.values()}

    @invariant()
    def holds_only_the_newest(self) -> None:
        if hasattr(self, "l1"):
            self.l1.check()
            assert all(held.value == self.newest.get(key) for key, held in self.l1.entries.items())
            assert len(self.l1) == len(self.l1.entries)


TestL1 = L1Machine.TestCase
TestL1.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize(("max_entries", "max_bytes"), [(0, 1000), (1000, 0), (0, 0)])
def test_a_bound_of_zero_turns_l1_off(max_entries: int, max_bytes: int) -> None:
    l1 = L1(max_entries, max_bytes)
    assert not l1.put(entry("a", size=0))
    assert not l1.entries
    l1.check()


def test_a_replaced_entry_keeps_its_count_and_gives_its_bytes_back() -> None:
    l1 = filled(10)
    read(l1, "3")
    read(l1, "3")
    assert l1.put(entry("3", "new", size=50))
    assert (l1.entries["3"].freq, l1.entries["3"].value, l1.bytes, len(l1)) == (2, "new", 140, 10)
    l1.check()


def test_keys_read_once_do_not_flush_those_read_often() -> None:
    l1 = L1(1000, MANY_BYTES)
    hot = [f"hot{number}" for number in range(500)]
    for _ in range(3):
        for key in hot:
            if read(l1, key) is None:
                l1.put(entry(key, key))
    for number in range(20_000):
        l1.put(entry(f"scan{number}"))
    assert sum(key in l1.entries for key in hot) == len(hot)
    l1.check()


def test_a_ghost_that_comes_back_outlives_what_is_read_once() -> None:
    l1 = filled(100)
    l1.put(entry("back"))
    scan = iter(range(10**6))
    while "back" in l1.entries:
        l1.put(entry(f"scan{next(scan)}"))
    l1.put(entry("back"))
    for _ in range(200):
        l1.put(entry(f"scan{next(scan)}"))
    assert "back" in l1.entries
    l1.check()


def test_a_hot_key_stays_hot_through_an_invalidation() -> None:
    l1 = filled(100)
    for _ in range(3):
        read(l1, "50")
    for number in range(200):
        l1.put(entry(f"scan{number}"))
    l1.remove("50")
    l1.put(entry("50"))
    for number in range(200, 400):
        l1.put(entry(f"scan{number}"))
    assert "50" in l1.entries
    l1.check()


def test_an_entry_too_large_is_refused_and_takes_the_older_value_with_it() -> None:
    l1 = L1(100, 800)
    assert l1.put(entry("a", "old", size=100))
    assert not l1.put(entry("a", "new", size=101))
    assert "a" not in l1.entries
    assert l1.bytes == 0
    l1.check()


def test_bytes_are_bounded_whatever_the_sizes() -> None:
    l1 = L1(10**6, 100_000)
    rng = random.Random(7)
    for turn in range(20_000):
        key = str(rng.randrange(3000))
        if read(l1, key) is None or rng.random() < 0.1:
            l1.put(entry(key, turn, size=rng.choice([1, 50, 400, 12_500])))
        assert l1.bytes <= 100_000
    assert l1.evictions > 1000
    l1.check()


def test_one_put_into_a_cache_of_hot_keys_only_looks_at_few() -> None:
    l1 = filled(10_000)
    for _ in range(3):
        for number in range(10_000):
            read(l1, str(number))
    before = sum(held.freq for held in l1.entries.values())
    l1.put(entry("one more"))
    assert before - sum(held.freq for held in l1.entries.values()) < 300
    assert len(l1) == 10_000
    l1.check()


def test_what_removals_leave_behind_is_bounded() -> None:
    l1 = filled(10_000, 20_000)
    for number in range(50_000):
        l1.put(entry(f"churn{number}"))
        l1.remove(f"churn{number}")
        if number % 1000 == 0:
            l1.check()
    assert len(l1) == 10_000
    for number in range(10_000):
        l1.remove(str(number))
        queued = len(l1._small) + len(l1._main)
        assert queued - len(l1) <= 2 * (64 + len(l1) // 8)
    assert len(l1) == l1.bytes == 0
    l1.check()


def test_a_sweep_works_in_slices_and_removes_exactly_the_dead() -> None:
    l1 = filled(5000)
    for number in range(0, 5000, 3):
        read(l1, str(number))
    for number in range(5000, 6000):
        l1.put(entry(str(number), number, seq=number))
    alive = {key for key, held in l1.entries.items() if held.seq % 2}
    dead = len(l1) - len(alive)
    steps = list(l1.sweep(lambda held: held.seq % 2 == 0, ticking(), 0.001))
    assert len(steps) > 20
    assert sum(steps) == dead
    assert set(l1.entries) == alive
    l1.check()


def test_a_sweep_meets_every_dead_entry_though_others_come_go_and_move() -> None:
    l1 = filled(2000)
    rng = random.Random(3)
    for _ in range(4000):
        read(l1, str(rng.randrange(2000)))
    spare = {key for key, held in l1.entries.items() if not held.seq % 5}
    for turn, _ in enumerate(l1.sweep(lambda held: held.seq % 5 != 0, ticking(), 0.0005)):
        # Insertions push hot entries round the main queue and from small to main, removals start a compaction.
        for number in range(40):
            l1.put(entry(f"new{turn}-{number}", seq=-5))
            read(l1, str(rng.randrange(2000)))
            l1.remove(str(rng.randrange(2000)))
            l1.put(entry(str(rng.choice(range(0, 2000, 5))), seq=-5))
        l1.check()
    assert all(held.seq % 5 == 0 for held in l1.entries.values())
    assert spare & set(l1.entries)


def test_two_sweeps_at_once_each_find_all_of_theirs() -> None:
    l1 = filled(3000)
    first = l1.sweep(lambda held: held.seq % 2 == 0, ticking(), 0.0005)
    second = l1.sweep(lambda held: held.seq % 3 == 0, ticking(), 0.0005)
    next(first)
    while next(second, None) is not None and next(first, None) is not None:
        l1.check()
    list(first)
    list(second)
    assert {held.seq for held in l1.entries.values()} == {seq for seq in range(3000) if seq % 2 and seq % 3}
    l1.check()


def test_an_abandoned_sweep_stops_removing() -> None:
    l1 = filled(1000)
    sweep = l1.sweep(lambda held: True, ticking(), 0.0005)
    gone = next(sweep)
    del sweep
    for number in range(100):
        l1.remove(str(999 - number))
    assert len(l1) == 900 - gone
    l1.check()


def test_a_predicate_that_raises_leaves_l1_whole() -> None:
    l1 = filled(100)

    def is_dead(held: Entry) -> bool:
        if held.seq == 50:
            raise ZeroDivisionError
        return True

    with pytest.raises(ZeroDivisionError):
        list(l1.sweep(is_dead, ticking()))
    assert len(l1) == 50
    l1.check()
    assert list(l1.sweep(lambda held: held.seq == 50, ticking())) == [1]


def test_clear_empties_the_same_dictionary() -> None:
    l1 = filled(100)
    entries = l1.entries
    l1.clear()
    assert l1.entries is entries
    assert not entries
    l1.check()
    assert l1.put(entry("a"))
    l1.check()


HEAVY: list[Any] = [[]] * 50
TOO_LARGE: list[Any] = [[]] * 5_000


def promote(l1: L1, key: str, value: object) -> None:
    """It is read, and then others come until it would have had to leave."""
    l1.put(heavy(key, value))
    read(l1, key)
    for number in range(40):
        l1.put(entry(f"other {number}", number, 4_000))


def replace(l1: L1, key: str, value: object) -> None:
    """It is read, and a newer one comes."""
    l1.put(entry(key, 1, 300))
    read(l1, key)
    l1.put(heavy(key, value))


def invalidate(l1: L1, key: str, value: object) -> None:
    """It is read and removed, and comes back."""
    l1.put(entry(key, 1, 300))
    read(l1, key)
    l1.remove(key)
    l1.put(heavy(key, value))


def remember(l1: L1, key: str, value: object) -> None:
    """It has to leave unread, the only one so far, lest hashes decide what is remembered; and comes back soon."""
    l1.put(entry(key, 1, 300))
    others = count()
    while key in l1.entries:
        l1.put(entry(f"other {next(others)}", 1, 300))
    assert l1.evictions == 1
    l1.put(heavy(key, value))


def heavy(key: str, value: object) -> Entry:
    """One whose value takes more than is said."""
    return Entry(key, value, GROUP, 0.0, 0, 0.0, 0.0, 300)


@pytest.mark.parametrize("become_hot", [promote, replace, invalidate, remember])
def test_a_value_is_looked_into_when_it_turns_out_to_be_hot(become_hot: Callable[[L1, str, object], None]) -> None:
    l1 = L1(1000, 1 << 17)
    become_hot(l1, "hot", HEAVY)
    assert l1.entries["hot"].size > 3_000
    l1.check()


@pytest.mark.parametrize("become_hot", [promote, replace, invalidate, remember])
def test_one_that_turns_out_too_large_leaves(become_hot: Callable[[L1, str, object], None]) -> None:
    l1 = L1(1000, 1 << 17)
    become_hot(l1, "hot", TOO_LARGE)
    assert "hot" not in l1.entries
    l1.check()


def test_a_hot_value_that_no_one_can_weigh_stays_as_it_was_said_to_be() -> None:
    class Odd(dict[str, Any]):
        def __sizeof__(self) -> int:
            raise RuntimeError

    l1 = L1(1000, 1 << 17)
    promote(l1, "hot", Odd())
    assert l1.entries["hot"].size == 300
    l1.check()
