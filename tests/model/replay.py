"""Play one schedule of the model again, and show every state on the way:

    python -m tests.model.replay SETUP RULE 'step; step; ...'

RULE is the rule that is taken away, or "-" for none.
"""

from __future__ import annotations

import sys

from tests.model.broken import without
from tests.model.explore import say
from tests.model.promises import Promises
from tests.model.setup import EVERY, Setup
from tests.model.world import World


def replay(setup: Setup, steps: list[str]) -> None:
    """Print the states that the steps lead to, and what each breaks."""
    world = World(setup)
    promises, state = Promises(world), world.start()
    for number, step in enumerate(["start", *steps]):
        if number:
            possible = {say(label): after for label, after in world.steps(state)}
            if step not in possible:
                raise SystemExit(f"{step!r} can't happen here, but: {', '.join(possible)}")
            state = possible[step]
        core, nodes = world.nodes.cores.things[state.core], world.nodes
        print(f"{number:2}. {step}")
        print(f"    truth   {world.truths.things[state.truth]}")
        print(f"    L2      {world.l2.states.things[state.l2]}")
        print(f"    node    {core.view}")
        print(f"    L1      {core.held}")
        for what, part in (
            ("flight", nodes.flights.things[state.flight]),
            ("write", nodes.writes.things[state.write]),
            ("turn", nodes.tendings.things[state.tending]),
            ("bag", [world.messages.things[message] for message in state.bag]),
        ):
            if part:
                print(f"    {what:7} {part}")
        for promise, how in promises.broken(state):
            print(f"    BROKEN  {promise}: {how}")


if __name__ == "__main__":
    _, name, rule, schedule = sys.argv
    with without(rule):
        replay(EVERY[name], [step for step in schedule.split("; ") if step])
