"""A chunk of a batch: items that go to L2 together, with the plans that they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.clean import describe
from cachebus.consumers.worker.source import Item, WaitingItem
from cachebus.keys.plan import Plan
from cachebus.producers.command import Command


def size_of(plan: Plan) -> int:
    """How many keys and scopes (tags among them) a plan addresses."""
    return len(plan.keys) + len(plan.scopes)


class CommandPart(NamedTuple):
    """One command of an item, and what it addresses."""

    item: Item
    command: Command | bytes | str
    plan: Plan


class RefusedItem(NamedTuple):
    """An item that can't be applied, or not as a whole."""

    item: Item
    reasons: list[str]


class Settled(NamedTuple):
    """What has become of a chunk's items. One may be both refused and waiting, each a part of it."""

    applied: Sequence[Item]
    """All of them that could be is applied."""
    undone: Sequence[Item]
    """There was no time for these, or for a part: they come again as a whole."""
    waiting: Sequence[WaitingItem]
    refused: Sequence[RefusedItem]
    waiting_size: int
    """How many keys and scopes wait."""


class Chunk:
    """Items of a batch that go to L2 together."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.plans: list[Plan] = []
        self.ignored: list[Item] = []
        self.size = 0
        self._parts: list[CommandPart] = []
        """One for each plan, at the same place."""
        self._refused: dict[int, RefusedItem] = {}
        """By the item's `id`."""

    def add(self, item: Item, commands: Sequence[Command | bytes | str], plans: Sequence[Plan]) -> None:
        """Add an item with its commands, and the plan of each."""
        self.items.append(item)
        for plan in plans:
            plan.source = item.place
        if len(plans) == 1:  # nearly always
            self._parts.append(CommandPart(item, commands[0], plans[0]))
            self.plans.append(plans[0])
            self.size += 1 + size_of(plans[0])
            return
        self._parts += [CommandPart(item, command, plan) for command, plan in zip(commands, plans, strict=True)]
        self.plans += plans
        self.size += 1 + sum(map(size_of, plans))

    def extend(self, items: Sequence[Item], commands: Sequence[Command | bytes | str], plans: Sequence[Plan]) -> None:
        """Add items of one command and one plan each."""
        self.items += items
        self._parts += map(CommandPart, items, commands, plans)
        for item, plan in zip(items, plans, strict=True):
            plan.source = item.place
        self.plans += plans
        self.size += len(items) + sum(map(size_of, plans))

    def refuse(self, item: Item, why: str) -> None:
        """Note a reason why the item, or a part of it, can't be applied."""
        self._refused.setdefault(id(item), RefusedItem(item, [])).reasons.append(why)

    def settled(self, carried: Carried) -> Settled:
        """What has become of the items, now that L2 was asked."""
        for place, error in carried.failed.items():
            self.refuse(self._parts[place].item, describe(error))
        undone, failed = self._items_of(carried.late), self._items_of(carried.failed)
        waiting = {of: parts for of, parts in self._parts_by_item(carried.away).items() if of not in undone}
        left = undone.keys() | failed.keys() | waiting.keys()
        return Settled(
            applied=[item for item in self.items if id(item) not in left] if left else self.items,
            undone=list(undone.values()),
            waiting=[_waiting(parts) for parts in waiting.values()],
            refused=[one for of, one in self._refused.items() if of not in undone],
            waiting_size=sum(size_of(self.plans[place]) for place in carried.away),
        )

    def _items_of(self, places: Iterable[int]) -> dict[int, Item]:
        """The items of the plans at these places, by their `id`, in their order."""
        return {of: parts[0].item for of, parts in self._parts_by_item(places).items()}

    def _parts_by_item(self, places: Iterable[int]) -> dict[int, list[CommandPart]]:
        """The parts at these places, by their item's `id`, in their order."""
        found: dict[int, list[CommandPart]] = {}
        for place in sorted(places):
            part = self._parts[place]
            found.setdefault(id(part.item), []).append(part)
        return found


def _waiting(parts: Sequence[CommandPart]) -> WaitingItem:
    """An item's parts that wait."""
    shards = tuple(part.plan.shard for part in parts)
    return WaitingItem(parts[0].item, [part.command for part in parts], frozenset(shards), shards)
