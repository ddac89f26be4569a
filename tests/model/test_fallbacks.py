"""Fallbacks for a source that fails, and write guards that a takeover may lose: every schedule of a small world, with
all rules and without each of them; and how old a fallback may be.

`pytest -s` shows the counts, and the shortest counterexample of each rule.
"""

from __future__ import annotations

import pytest

from tests.model import fallback_age
from tests.model.broken import RULES_OF_FALLBACK_AGE, RULES_OF_FALLBACKS, without
from tests.model.fallbacks import CUT, TAKE_OVER, Schedule, broken, schedules

ALL = list(schedules())
PLAYS = sorted(
    [(s, False) for s in ALL] + [(s, True) for s in ALL if TAKE_OVER in s and CUT not in s],
    key=lambda play: len(play[0]),
)
"""Each schedule; where it matters, also with a node that does not hear of another epoch. The shortest first."""


async def counterexample() -> tuple[Schedule, str]:
    """The shortest schedule that breaks the promise, and how; an empty one where none does."""
    for schedule, deaf in PLAYS:
        how = await broken(schedule, deaf=deaf)
        if how:
            return schedule, f"{how}{', deaf' * deaf}"
    return (), ""


async def test_whatever_was_there_before_a_guarded_commit_is_served_no_more() -> None:
    schedule, how = await counterexample()
    assert not schedule, f"{how}: {', '.join(schedule)}"
    print(f"{len(PLAYS)} plays")


@pytest.mark.parametrize("name", RULES_OF_FALLBACKS)
async def test_a_rule_taken_away_breaks_the_promise(name: str) -> None:
    with without(name):
        schedule, how = await counterexample()
    assert schedule, f'nothing needs the rule "{RULES_OF_FALLBACKS[name].says}"'
    print(f"without {name!r}: {', '.join(schedule)}: {how}")


async def too_old() -> str:
    """How a fallback is given that is too old, "" where none is."""
    for schedule in fallback_age.schedules():
        how = await fallback_age.broken(schedule)
        if how:
            return f"{schedule}: {how}"
    return ""


async def test_no_fallback_is_older_than_what_memory_could_serve() -> None:
    assert not await too_old()


@pytest.mark.parametrize("name", RULES_OF_FALLBACK_AGE)
async def test_without_its_age_a_fallback_is_given_too_late(name: str) -> None:
    with without(name):
        how = await too_old()
    assert how, f'nothing needs the rule "{RULES_OF_FALLBACK_AGE[name].says}"'
    print(f"without {name!r}: {how}")
