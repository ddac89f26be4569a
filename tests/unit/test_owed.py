"""Leases that are owed to an L2 that is out of reach."""

from __future__ import annotations

import pytest

from cachebus.keys.key import Key, Keyspace
from cachebus.l2 import owed
from cachebus.l2.owed import OWED_S, OwedLeases
from cachebus.testing import FakeClock

space = Keyspace(4)
KEYS: dict[int, Key] = {}
for number in range(100):
    found = space.key("config", "x", f"t{number}")
    KEYS.setdefault(found.shard, found)


def test_they_are_told_once_shard_by_shard() -> None:
    clock = FakeClock()
    leases = OwedLeases(clock)
    leases.note(KEYS[0], "a", 0, "0")
    leases.note(KEYS[1], "b", 500, "1")
    leases.note(KEYS[1], "held on", 500, "0")
    assert leases.of(0)
    assert leases.of(1)
    assert not leases.of(2)
    clock.advance(0.25)
    assert [(each.token, each.px_ms, each.rests) for each in leases.taken(1)] == [("b", 250, "1")]
    assert not leases.of(1)
    assert [each.token for each in leases.taken(0)] == ["a"]
    assert not len(leases)
    leases.note(KEYS[0], "a", 0, "0")
    clock.advance(OWED_S + 1)
    assert not list(leases.taken(0))


def test_so_many_are_kept_of_all_shards_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owed, "OWED_MAX", 3)
    leases = OwedLeases(FakeClock())
    for token, shard in (("a", 0), ("b", 1), ("c", 2)):
        leases.note(KEYS[shard], token, 0, "0")
    leases.note(KEYS[1], "b", 500, "1")  # it is there already: nobody goes for it
    assert len(leases) == 3
    assert leases.of(0)
    leases.note(KEYS[3], "d", 0, "0")
    assert len(leases) == 3
    assert not leases.of(0)
    assert [each.token for shard in range(4) for each in leases.taken(shard)] == ["b", "c", "d"]
