"""The memory of what was evicted: it forgets what is old, and is wrong only seldom."""

from __future__ import annotations

import random

import pytest

from cachebus.l1.ghost import Ghosts


@pytest.mark.parametrize("slots", [1, 2, 64, 100, 4096, 50_000])
def test_what_was_never_added_is_not_there(slots: int) -> None:
    ghosts = Ghosts(slots)
    rng = random.Random(1)
    assert ghosts.slots >= slots
    assert not any(ghosts.take(rng.getrandbits(62), slots) for _ in range(1000))
    ghosts.check()


def test_a_hash_is_taken_once() -> None:
    ghosts = Ghosts(100)
    ghosts.add(-12345678901234567)
    assert ghosts.take(-12345678901234567, 100)
    assert not ghosts.take(-12345678901234567, 100)


@pytest.mark.parametrize("span", [50, 1000, 20_000])
def test_the_last_ones_are_remembered_and_older_ones_are_not(span: int) -> None:
    ghosts = Ghosts(span)
    rng = random.Random(2)
    hashes = [rng.getrandbits(62) for _ in range(5 * span)]
    for key_hash in hashes:
        ghosts.add(key_hash)
    recent = hashes[-span:]
    assert sum(ghosts.take(key_hash, span) for key_hash in recent) > 0.6 * span
    assert not any(ghosts.take(key_hash, span) for key_hash in hashes[: 3 * span])
    ghosts.check()


def test_the_counter_wraps_without_harm() -> None:
    ghosts = Ghosts(64)
    rng = random.Random(3)
    for _ in range(200_000):
        key_hash = rng.getrandbits(62)
        ghosts.add(key_hash)
    assert ghosts.take(key_hash, 64)
    ghosts.check()
