"""A chunk of a batch: items that go to L2 together, with the plans that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Final

from cachebus.consumers.worker.source import Item, Waiting
from cachebus.keys.plan import Plan

SENT_FROM_S: Final = 1_420_000_000.0
"""A time before 2015 is not a real one: it is left out of the lag."""


def size_of(plan: Plan) -> int:
    """How many keys and scopes (tags among them) a plan addresses."""
    return len(plan.keys) + len(plan.scopes)


class Chunk:
    """Items of a batch that go to L2 together."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.commands: list[Any] = []
        self.plans: list[Plan] = []
        self.of: list[int] = []
        """The place in `items` of each plan's item, by the plan's place."""
        self.refused: dict[int, tuple[Item, list[str]]] = {}
        """Items that can't be applied, or not as a whole, with the reasons, by the item's `id`."""
        self.ignored = 0
        self.size = 0

    def add(self, item: Item, commands: Sequence[Any], plans: Sequence[Plan]) -> None:
        """Add an item with its commands, and the plan of each."""
        at = len(self.items)
        self.items.append(item)
        if len(plans) == 1:  # nearly always
            self.of.append(at)
            self.commands.append(commands[0])
            self.plans.append(plans[0])
            self.size += 1 + size_of(plans[0])
            return
        self.of += [at] * len(plans)
        self.commands += commands
        self.plans += plans
        self.size += 1 + sum(map(size_of, plans))

    def refuse(self, item: Item, why: str) -> None:
        """Note a reason why the item, or a part of it, can't be applied."""
        self.refused.setdefault(id(item), (item, []))[1].append(why)

    def counted(self, left: Collection[int]) -> tuple[int, int, Counter[float]]:
        """How many items were applied for the first time, how many again, and when they were sent. `left`: the places
        of items that are not applied."""
        applied, again, sent_s = 0, 0, Counter[float]()
        for place, item in enumerate(self.items):
            if place in left:
                continue
            again += item.again
            applied += not item.again
            if item.sent_s is not None and item.sent_s > SENT_FROM_S:
                sent_s[item.sent_s] += 1
        return applied, again, sent_s

    def waiting(self, away: set[int], late: set[int]) -> dict[int, Waiting]:
        """What waits for primaries that are away, by the item's place. Items in `late` are left out: they come again as
        a whole."""
        commands: dict[int, list[Any]] = {}
        shards: dict[int, list[int]] = {}
        for place in sorted(away):
            of = self.of[place]
            if of not in late:
                commands.setdefault(of, []).append(self.commands[place])
                shards.setdefault(of, []).append(self.plans[place].shard)
        return {
            of: Waiting(self.items[of], asked, frozenset(shards[of]), tuple(shards[of]))
            for of, asked in commands.items()
        }
