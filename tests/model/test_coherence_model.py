"""The rules of coherence hold in every schedule of a small world, and without any one of them some schedule breaks a
promise. The world's nodes run the library's own code; only time, the network and the store's server are played."""

from __future__ import annotations

import pytest

from tests.model.broken import RULES, without
from tests.model.explore import explore, walk
from tests.model.setup import CROSS, SETUPS, WALK
from tests.model.world import World

LIMIT = 120_000
ALL = {**SETUPS, CROSS.name: CROSS}
WALK_STEPS = 1_500
BOUNDED = {"LOG": 30_000}
"""Set-ups too large to exhaust in a test run: explored breadth first so far."""


@pytest.mark.parametrize("name", SETUPS)
def test_every_promise_holds(name: str) -> None:
    outcome = explore(SETUPS[name], BOUNDED.get(name, LIMIT))
    assert not outcome.promise, outcome.told(SETUPS[name], "")
    assert outcome.exhausted or name in BOUNDED


@pytest.mark.parametrize("name", RULES)
def test_without_a_rule_a_promise_breaks(name: str) -> None:
    rule = RULES[name]
    with without(name):
        outcome = explore(ALL[rule.setup], LIMIT, rule.breaks)
    assert outcome.promise == rule.breaks, f"without {rule.says!r} nothing is broken in {outcome.states} states"
    print(outcome.told(ALL[rule.setup], name))


@pytest.mark.parametrize("seed", range(4))
def test_every_promise_holds_on_a_long_walk(seed: int) -> None:
    """A world too large to explore: one life at random, by a seed."""
    outcome = walk(World(WALK), seed, WALK_STEPS)
    assert not outcome.promise, outcome.told(WALK, "")
