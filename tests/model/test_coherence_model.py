"""The rules of coherence, explored state by state over the real code: with all of them every promise holds, and with
any one of them taken away a schedule is found that breaks one.

A schedule is printed with the command that plays it again, step by step. `pytest -s` shows the counts, and the
counterexample of each rule. CACHEBUS_MODEL_LIVES=1000 walks further at random, CACHEBUS_MODEL_SEED=7 from that seed on.
"""

from __future__ import annotations

import os
from functools import cache

import pytest

from tests.model.broken import RULES, without
from tests.model.explore import explore, walk
from tests.model.setup import EVERY, SETUPS, WALK
from tests.model.world import World

LIMIT = 250_000
"""States: none of the set-ups has that many, so each is explored to its end."""
FIRST_SEED = int(os.environ.get("CACHEBUS_MODEL_SEED", "0"))
LIVES = int(os.environ.get("CACHEBUS_MODEL_LIVES", "15"))
LIFE_STEPS = 200


@pytest.mark.parametrize("name", SETUPS)
def test_every_promise_holds_in_every_state(name: str) -> None:
    outcome = explore(SETUPS[name], LIMIT)
    print(f"{name}: {outcome.states} states")
    assert not outcome.promise, outcome.told(SETUPS[name], "-")
    assert outcome.exhausted, f"{name} has more than {LIMIT} states: make it smaller"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_taken_away_breaks_a_promise(name: str) -> None:
    rule = RULES[name]
    setup = EVERY[rule.setup]
    with without(name):
        outcome = explore(setup, LIMIT, rule.breaks)
    assert outcome.promise == rule.breaks, f'nothing in {rule.setup} needs the rule "{rule.says}" for {rule.breaks}'
    print(outcome.told(setup, name))


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + LIVES))
def test_every_promise_holds_through_a_life_at_random(seed: int) -> None:
    outcome = walk(_wide_world(), seed, LIFE_STEPS)
    again = f"again: CACHEBUS_MODEL_SEED={seed} CACHEBUS_MODEL_LIVES=1 pytest {__file__} -k life"
    assert not outcome.promise, f"{outcome.told(WALK, '-')}\n{again}"


@cache
def _wide_world() -> World:
    """One for all lives: it remembers what the real code does in each situation."""
    return World(WALK)
