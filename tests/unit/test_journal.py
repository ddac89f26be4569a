"""What a publisher remembers of what it said, for the case that who acknowledged it was deposed."""

from __future__ import annotations

from cachebus import journal
from cachebus.journal import KEEP_S, Journal
from cachebus.keys import Keyspace
from cachebus.plan import AT_ONCE, Plan

space = Keyspace(1)
OLD, NEW = b"0" * 16, b"1" * 16


class Hands:
    """A clock that the test moves."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def plan(*ids: str, names: tuple[str, ...] = (), shard: int = 0) -> Plan:
    made = Plan(shard)
    made.keys += [space.key("d", each, "t") for each in ids]
    made.names += names
    return made


def told(plans: list[Plan]) -> tuple[list[str], list[str]]:
    keys = [str(key.resource_id) for plan in plans for key in plan.keys]
    return keys, [name for plan in plans for name in plan.names]


def test_what_was_said_in_other_epochs_is_gathered_without_repetitions() -> None:
    said = Journal(Hands())
    said.note(plan("a", "b", names=("n",)), OLD)
    said.note(plan("b", "c", names=("n", "m")), OLD)
    said.note(plan("other shard", shard=1), OLD)
    said.note(plan("heard by the new one"), NEW)
    assert told(said.lost(0, NEW)) == (["a", "b", "c"], ["n", "m"])
    assert said.lost(2, NEW) == []


def test_it_is_repeated_once_and_what_came_later_stays() -> None:
    hands = Hands()
    said = Journal(hands)
    said.note(plan("a"), OLD)
    asked_s = hands()
    assert told(said.lost(0, NEW))[0] == ["a"]
    hands.now_s += 1
    said.note(plan("a"), b"2" * 16)  # repeated, in an epoch that began meanwhile
    said.repeated(0, NEW, asked_s)
    assert told(said.lost(0, NEW))[0] == ["a"], "the later one, of yet another epoch"
    assert said.lost(0, b"2" * 16) == []


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    hands = Hands()
    said = Journal(hands)
    said.note(plan("old"), OLD)
    hands.now_s += KEEP_S / 2
    said.note(plan("young"), OLD)
    hands.now_s += KEEP_S / 2 + 1
    assert told(said.lost(0, NEW))[0] == ["young"]


def test_much_is_said_in_parts_and_too_much_loses_the_oldest() -> None:
    said = Journal(Hands())
    for i in range(journal.MOST + 3):
        said.note(plan(str(i)), OLD)
    parts = said.lost(0, NEW)
    assert max(len(part.keys) for part in parts) == AT_ONCE
    assert told(parts)[0] == [str(i) for i in range(3, journal.MOST + 3)]
