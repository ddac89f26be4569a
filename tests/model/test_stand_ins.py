"""Stand-ins for a source that fails, and write guards that a takeover may lose: every schedule of a small world, with
all rules and without each of them.

`pytest -s` shows the counts, and the shortest counterexample of each rule.
"""

from __future__ import annotations

import pytest

from tests.model.broken import RULES_OF_STAND_INS, without
from tests.model.stand_ins import CUT, TAKE_OVER, Schedule, broken, schedules

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


@pytest.mark.parametrize("name", RULES_OF_STAND_INS)
async def test_a_rule_taken_away_breaks_the_promise(name: str) -> None:
    with without(name):
        schedule, how = await counterexample()
    assert schedule, f'nothing needs the rule "{RULES_OF_STAND_INS[name].says}"'
    print(f"without {name!r}: {', '.join(schedule)}: {how}")
