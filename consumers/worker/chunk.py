"""Items on their way to L2: what they address together, and what of it is whose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Final

from cachebus.consumers.worker.source import Item, Waiting
from cachebus.keys.plan import Plan

SENT_FROM_S: Final = 1_420_000_000.0
"""Times before 2015 are none: nothing was sent then."""


def size_of(plan: Plan) -> int:
    """How many keys, scopes and tags it addresses."""
    return len(plan.keys) + len(plan.scopes)


class Reading:
    """Items of a batch that go to L2 together: what they address, and whose plan is whose."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.commands: list[Any] = []
        self.plans: list[Plan] = []
        self.of: list[int] = []
        """By plan: the place of its item."""
        self.refused: dict[int, tuple[Item, list[str]]] = {}
        """By `id` of the item: why it, or some of it, can't be used."""
        self.ignored = 0
        self.size = 0

    def add(self, item: Item, commands: Sequence[Any], plans: Sequence[Plan]) -> None:
        """An item, and what it asks for."""
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
        """This of it can't be used."""
        self.refused.setdefault(id(item), (item, []))[1].append(why)

    def counted(self, left: Collection[int]) -> tuple[int, int, Counter[float]]:
        """Of all but those left: how many were applied, how many of them again, and when they were sent."""
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
        """By place of the item: what of it waits for a primary that is away, unless all of it comes again anyway."""
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
