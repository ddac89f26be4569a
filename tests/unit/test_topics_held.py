"""What a worker that reads topics holds in memory, and where it begins a partition."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from aiokafka import TopicPartition

from cachebus.consumers.topics.brokers import Committed
from cachebus.consumers.topics.held import FIRST_S, LONGEST_S, Held, HeldMessage
from cachebus.consumers.topics.note import ANEW, CUT, EXPIRED, L2, OTHERS, RULES, Note, StartOffset, begin_at, note_of
from cachebus.consumers.topics.progress import AssignmentProgress

ONE, TWO = frozenset({1}), frozenset({2})
PART, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


class Record(NamedTuple):
    """As the driver gives one."""

    topic: str
    partition: int
    offset: int
    value: bytes = b"x" * 100
    key: bytes | None = None


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def kept(offset: int, partition: TopicPartition = PART, value: bytes = b"x" * 100, sent_s: float = 0.0) -> HeldMessage:
    """A message that waits."""
    return HeldMessage(
        Record(partition.topic, partition.partition, offset, value), partition, (value,), sent_s, again=False
    )


def released(held: Held) -> list[int]:
    """Give and let go of all that may be tried."""
    given = held.give(10_000, ())
    held.tried({}, ())
    return [one.record.offset for one in given]


def test_one_is_asked_for_and_then_all_are_given() -> None:
    now = Now()
    held = Held(clock=now)
    for offset in range(5, 15):
        held.keep(kept(offset), ONE)
    assert (len(held), held.first(PART), held.first(OTHER)) == (10, 5, None)
    assert held.give(100, ()) == [], "it was away a moment ago"
    now.s = FIRST_S
    assert held.give(100, {1}) == [], "it is known to be away"
    (question,) = held.give(100, ())
    held.tried({question: ONE}, ())
    assert (len(held), held.first(PART)) == (10, 5)
    assert held.give(100, ()) == [], "it has just been asked"
    now.s += 2 * FIRST_S
    assert released(held) == [5]
    assert held.first(PART) == 6
    assert released(held) == list(range(6, 15)), "its primary is back"
    assert (len(held), held.size_bytes, held.first(PART)) == (0, 0, None)


def test_who_stays_away_is_asked_ever_less_often_and_each_in_its_turn() -> None:
    now = Now()
    held = Held(clock=now)
    for offset in range(4):
        held.keep(kept(offset), frozenset({offset}))
    asked: list[int] = []
    while now.s < 60:
        for one in held.give(100, ()):
            asked.append(one.record.offset)
            held.tried({one: frozenset({one.record.offset})}, ())
        now.s += 0.25
    assert 60 / LONGEST_S <= len(asked) <= 60 / LONGEST_S + 4
    assert asked[:5] == [0, 1, 2, 3, 0]


def test_what_there_was_no_time_for_comes_first_and_as_it_was() -> None:
    now = Now()
    held = Held(clock=now)
    for offset in range(10):
        held.keep(kept(offset), ONE)
    now.s = FIRST_S
    assert released(held) == [0]
    given = held.give(4, ())
    held.tried({}, set(given[2:]))
    assert held.first(PART) == 3
    assert released(held) == list(range(3, 10))


@pytest.mark.parametrize("bounds", [{"most": 3}, {"most_bytes": 2500}])
def test_what_is_too_much_is_read_again_once_the_rest_is_applied(bounds: dict[str, int]) -> None:
    now = Now()
    held = Held(clock=now, **bounds)
    for offset in range(10):
        held.keep(kept(offset), ONE)
        held.keep(kept(offset, OTHER), TWO)
    assert len(held) <= 5 and held.size_bytes <= 2500 + 700
    assert (held.first(PART), held.first(OTHER)) == (0, 0)
    assert held.left_there.keys() == {PART, OTHER}
    assert held.to_read_again() == {}
    now.s = FIRST_S
    while held.give(100, {2}):
        held.tried({}, ())
    again = held.to_read_again()
    assert again.keys() == {PART}, "of the other one all is away still"
    assert held.to_read_again() == {}, "once"
    assert held.first(PART) is None
    for offset in range(again[PART], 10):
        held.keep(kept(offset), ONE)
    assert held.first(PART) == again[PART]


def test_one_that_is_held_and_read_again_is_not_held_twice() -> None:
    held = Held()
    for _ in range(3):
        held.keep(kept(7), ONE)
    assert len(held) == 1


OURS = Note("ours", "id", said="rules").text()


@pytest.mark.parametrize(
    ("committed", "first", "known", "more", "begins"),
    [
        (None, 0, None, {}, StartOffset(0)),
        (None, 6, None, {}, StartOffset(6, EXPIRED)),
        (Committed(7, OURS), 0, None, {}, StartOffset(7)),
        (Committed(7, ""), 0, "id", {}, StartOffset(7, OTHERS)),
        (Committed(7, OURS), 9, None, {}, StartOffset(9, CUT)),
        (Committed(7, OURS), 0, "id", {"cut": True}, StartOffset(0, CUT)),
        (Committed(7, Note("ours", "old").text()), 0, None, {}, StartOffset(0, ANEW)),
        (Committed(7, OURS), 0, "old", {}, StartOffset(7)),
        (None, 0, "old", {}, StartOffset(0, ANEW)),
        (Committed(7, Note("ours", "id", CUT, "rules").text()), 0, "id", {}, StartOffset(7, CUT)),
        (Committed(7, Note("ours", "id", said="older").text()), 0, "id", {}, StartOffset(7, RULES)),
        (Committed(0, Note("ours", "id", said="older").text()), 0, "id", {}, StartOffset(0)),
        (Committed(7, Note("others", "id").text()), 3, None, {}, StartOffset(3, EXPIRED)),
        (Committed(7, Note("others", "id").text()), 0, None, {}, StartOffset(0)),
    ],
    ids=[
        "new",
        "expired",
        "behind it",
        "noted by nobody",
        "cut before the start",
        "cut meanwhile",
        "made anew while away",
        "another began it anew",
        "made anew meanwhile",
        "not made up for yet",
        "by other rules",
        "by other rules, and nothing",
        "others' and cut",
        "others'",
    ],
)
def test_where_a_partition_is_begun(
    committed: Committed | None, first: int, known: str | None, more: dict[str, Any], begins: StartOffset
) -> None:
    assert begin_at(committed, first, Note("ours", "id", said="rules"), known, **more) == begins


@pytest.mark.parametrize(("noted", "here", "missed"), [("a", "a", ""), ("a", "b", L2), ("", "b", L2), ("a", "", "")])
def test_what_was_applied_at_another_l2_is_missed_once_it_is_known_which_one_is_here(
    noted: str, here: str, missed: str
) -> None:
    ours = Note("ours", "id", l2=here)
    assert begin_at(Committed(7, Note("ours", "id", l2=noted).text()), 0, ours, None) == StartOffset(7, missed)
    assert begin_at(Committed(0, Note("ours", "id", l2=noted).text()), 0, ours, None) == StartOffset(0)


@pytest.mark.parametrize("text", ["", "?", "[]", "7", '{"cachebus": 1}', "[" * 5000])
def test_whatever_others_note_is_nothing(text: str) -> None:
    assert note_of(text) == Note()
    assert note_of(Note("ours", "id", "odd").text()) == Note("ours", "id")


def test_what_is_missed_again_is_told_apart_from_what_was_missed_before() -> None:
    """It may be made up for in part by then: all of it is owed once more."""
    assignment: Any = None

    def losses(*begins: tuple[TopicPartition, int], identity: str = "one") -> str:
        at = {part: StartOffset(offset, CUT) for part, offset in begins}
        return AssignmentProgress(assignment, at, {"t": Note("n", identity)}).losses()

    assert losses((PART, 7), (OTHER, 9)) == losses((OTHER, 9), (PART, 7))
    assert losses((PART, 7)) != losses((PART, 8))
    assert losses((PART, 0)) != losses((PART, 0), identity="made anew")
    progress = AssignmentProgress(
        assignment, {PART: StartOffset(7, CUT), OTHER: StartOffset(1, "")}, {"t": Note("n", "one")}
    )
    assert progress.losses() == losses((PART, 7))
    progress.made_up([PART])
    assert not progress.losses()
