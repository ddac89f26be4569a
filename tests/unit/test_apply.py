"""Plans that fail together are applied apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cachebus import Settings
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.monitoring.meters import Meters
from cachebus.consumers.worker.apply import Applier
from cachebus.keys.plan import Plan


@pytest.fixture
def applier() -> Applier:
    """One that has reached L2."""
    health = WorkerHealth("test", ("l2",))
    applier = Applier(Settings(url="redis://127.0.0.1:1/0"), health, Meters(health))
    applier._is_open.set()
    return applier


def plans(count: int) -> list[Plan]:
    """So many, of one shard."""
    made = [Plan(0) for _ in range(count)]
    for at, plan in enumerate(made):
        plan.scopes.append(f"T\x1f{at}")
    return made


async def test_those_that_fail_only_together_are_all_applied(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    async def alone(several: Sequence[Plan]) -> bool:
        if len(several) > 1:
            raise RuntimeError("too much together")
        return True

    monkeypatch.setattr(applier, "_apply_to_shard", alone)
    carried = await applier.carry(plans(5))
    assert (carried.failed, carried.late, carried.away) == ({}, set(), set())


async def test_the_one_that_is_wrong_fails_alone(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    given, wrong = plans(5), RuntimeError("this one")

    async def but_one(several: Sequence[Plan]) -> bool:
        if given[3] in several:
            raise wrong
        return True

    monkeypatch.setattr(applier, "_apply_to_shard", but_one)
    carried = await applier.carry(given)
    assert (carried.failed, carried.late, carried.away) == ({3: wrong}, set(), set())
