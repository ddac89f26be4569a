"""What has become of the items of a chunk, by what L2 took of their plans."""

from __future__ import annotations

import pytest

from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.chunk import Chunk
from cachebus.consumers.worker.source import Item
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Plan

SPACE = Keyspace(1)


def plan(shard: int) -> Plan:
    made = Plan(shard)
    made.keys.append(SPACE.key("doc", shard, "acme"))
    return made


@pytest.fixture
def items() -> list[Item]:
    return [Item(name, None) for name in ("one plan", "two plans", "another")]


@pytest.fixture
def chunk(items: list[Item]) -> Chunk:
    """The first and the last item have one plan each, at places 0 and 3; that in the middle has two."""
    made = Chunk()
    made.add(items[0], [b"c0"], [plan(0)])
    made.add(items[1], [b"c1", b"c2"], [plan(1), plan(2)])
    made.add(items[2], [b"c3"], [plan(3)])
    return made


def test_all_is_applied_where_l2_has_taken_all(chunk: Chunk, items: list[Item]) -> None:
    assert chunk.settled(Carried()) == (items, [], [], [], 0)


def test_an_item_waits_by_those_of_its_parts_that_do(chunk: Chunk, items: list[Item]) -> None:
    settled = chunk.settled(Carried(away={2, 3}))
    assert settled.applied == [items[0]]
    assert settled.waiting == [(items[1], [b"c2"], frozenset({2}), (2,)), (items[2], [b"c3"], frozenset({3}), (3,))]
    assert settled.waiting_size == 2


def test_an_item_that_is_late_comes_again_as_a_whole(chunk: Chunk, items: list[Item]) -> None:
    """It neither waits by its other part, nor is refused by it."""
    chunk.refuse(items[1], "a part of it is wrong")
    settled = chunk.settled(Carried(away={1}, late={2}))
    assert (settled.applied, settled.undone) == ([items[0], items[2]], [items[1]])
    assert (settled.waiting, settled.refused) == ([], [])


def test_an_item_that_l2_refused_is_not_applied_and_has_the_reason(chunk: Chunk, items: list[Item]) -> None:
    settled = chunk.settled(Carried(failed={3: ValueError("too long")}))
    assert settled.applied == items[:2]
    assert settled.refused == [(items[2], ["ValueError: too long"])]


def test_an_item_of_which_a_part_was_never_planned_is_applied_and_refused(chunk: Chunk, items: list[Item]) -> None:
    chunk.refuse(items[0], "one name")
    chunk.refuse(items[0], "another name")
    stranger = Item("no plan at all", None)
    chunk.refuse(stranger, "no command")
    settled = chunk.settled(Carried())
    assert settled.applied == items
    assert settled.refused == [(items[0], ["one name", "another name"]), (stranger, ["no command"])]
