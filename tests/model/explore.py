"""Looking through a world: breadth first for the shortest schedule that breaks a promise, or at random and far."""

from __future__ import annotations

import gc
import random
from collections import deque
from dataclasses import dataclass

from tests.model.promises import Promises
from tests.model.setup import Setup
from tests.model.world import Label, State, Step, World


@dataclass(frozen=True)
class Outcome:
    """What came of it: the promise broken, if one was, and the schedule that led there."""

    states: int
    exhausted: bool
    promise: str = ""
    how: str = ""
    schedule: tuple[Label, ...] = ()

    def told(self, setup: Setup, rule: str) -> str:
        """The schedule for a reader, and the command that plays it again."""
        lacks = "with all rules" if rule == "-" else f'without "{rule}"'
        lines = [f"{setup.name} {lacks}: {self.promise} is broken: {self.how}"]
        lines += [f"  {number:2}. {say(label)}" for number, label in enumerate(self.schedule, 1)]
        steps = "; ".join(map(say, self.schedule))
        lines.append(f"again: python -m tests.model.replay {setup.name} {rule!r} {steps!r}")
        return "\n".join(lines)


def say(label: Label) -> str:
    """A step in words."""
    return " ".join(map(str, label))


def explore(setup: Setup, limit: int, promise: str = "") -> Outcome:
    """Every state of the set-up, up to a limit, until one breaks a promise (with `promise`: that one)."""
    world = World(setup)
    promises, start = Promises(world), world.start()
    came: dict[State, tuple[State, Label] | None] = {start: None}
    todo = deque([start])
    gc.disable()  # millions of small tuples, none in a cycle
    try:
        while todo:
            state = todo.popleft()
            for found, how in promises.broken(state):
                if not promise or found == promise:
                    return Outcome(len(came), False, found, how, _trail(came, state))
            if len(came) > limit:
                return Outcome(len(came), False)
            for label, after in world.steps(state):
                if after not in came:
                    came[after] = (state, label)
                    todo.append(after)
    finally:
        gc.enable()
    return Outcome(len(came), True)


def _trail(came: dict[State, tuple[State, Label] | None], state: State) -> tuple[Label, ...]:
    labels = []
    while (step := came[state]) is not None:
        state, label = step
        labels.append(label)
    return tuple(reversed(labels))


def walk(world: World, seed: int, steps: int) -> Outcome:
    """One life at random."""
    chance = random.Random(seed)
    promises, state = Promises(world), world.start()
    schedule: list[Label] = []
    for _ in range(steps):
        for found, how in promises.broken(state):
            return Outcome(len(schedule), False, found, how, tuple(schedule))
        kinds: dict[object, list[Step]] = {}
        for step in world.steps(state):
            kinds.setdefault(step[0][0], []).append(step)
        label, state = chance.choice(chance.choice(list(kinds.values())))
        schedule.append(label)
    return Outcome(len(schedule), True)
