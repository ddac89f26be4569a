"""Leases that are owed to an L2 that is out of reach."""

from __future__ import annotations

import pytest

from cachebus.keys.key import Key, Keyspace
from cachebus.l2 import owed
from cachebus.l2.owed import OWED_S, OwedFillLeases
from cachebus.testing import FakeClock

space = Keyspace(4)
KEYS: dict[int, Key] = {}
for number in range(100):
    found = space.key("config", "x", f"t{number}")
    KEYS.setdefault(found.shard, found)


def test_they_are_told_once_shard_by_shard() -> None:
    clock = FakeClock()
    leases = OwedFillLeases(clock)
    leases.note(KEYS[0], "a", px_ms=0, cools_down=False)
    leases.note(KEYS[1], "b", px_ms=500, cools_down=True)
    leases.note(KEYS[1], "held on", px_ms=500, cools_down=False)
    assert leases.of(0)
    assert leases.of(1)
    assert not leases.of(2)
    clock.advance(0.25)
    assert [(each.token, each.px_ms, each.cools_down) for each in leases.take(1)] == [("b", 250, True)]
    assert not leases.of(1)
    assert [each.token for each in leases.take(0)] == ["a"]
    assert not len(leases)
    leases.note(KEYS[0], "a", px_ms=0, cools_down=False)
    clock.advance(OWED_S + 1)
    assert not list(leases.take(0))


def test_so_many_are_kept_of_all_shards_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owed, "OWED_MAX", 3)
    leases = OwedFillLeases(FakeClock())
    for token, shard in (("a", 0), ("b", 1), ("c", 2)):
        leases.note(KEYS[shard], token, px_ms=0, cools_down=False)
    leases.note(KEYS[1], "b", px_ms=500, cools_down=True)  # it is there already: nobody goes for it
    assert len(leases) == 3
    assert leases.of(0)
    leases.note(KEYS[3], "d", px_ms=0, cools_down=False)
    assert len(leases) == 3
    assert not leases.of(0)
    assert [each.token for shard in range(4) for each in leases.take(shard)] == ["b", "c", "d"]
