"""For how long messages have waited that are not read, of which nobody knows when they were sent."""

from __future__ import annotations

from aiokafka import TopicPartition

from cachebus.consumers.topics.unread import UnreadMessages

ONE, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


class Looks:
    """Looks at some partitions, two seconds apart."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._unread = UnreadMessages(lambda: self.now_s)

    def look(
        self, at: dict[TopicPartition, int], ends: dict[TopicPartition, int], asked: set[TopicPartition] | None = None
    ) -> dict[TopicPartition, float]:
        """What waits, and for how long."""
        self.now_s += 2
        return self._unread.waits_s(at.keys() if asked is None else asked, at, ends, self.now_s)


def test_one_that_stands_still_waits_since_it_was_read_to_its_end_and_the_others_hide_it_not() -> None:
    looks = Looks()
    assert looks.look({ONE: 5, OTHER: 7}, {ONE: 5, OTHER: 7}) == {}
    for age_s in (2, 4, 6):
        assert looks.look({ONE: 5, OTHER: 7 + age_s}, {ONE: 9, OTHER: 7 + age_s}) == {ONE: age_s}
    assert looks.look({ONE: 9, OTHER: 14}, {ONE: 9, OTHER: 14}) == {}


def test_one_that_always_has_more_waits_no_longer_than_from_one_look_to_the_next_but_one() -> None:
    looks = Looks()
    ages_s = [looks.look({ONE: number - 1}, {ONE: number}).get(ONE) for number in range(1, 20)]
    assert set(ages_s) <= {0, 2, 4}
    assert looks.look({ONE: 18}, {ONE: 30}) == {ONE: 4}
    assert looks.look({ONE: 18}, {ONE: 40}) == {ONE: 6}, "it stands still"


def test_one_whose_leader_does_not_tell_waits_too_and_so_does_one_that_nobody_knows_where_to_read() -> None:
    looks = Looks()
    looks.look({ONE: 5}, {ONE: 5})
    assert looks.look({ONE: 5}, {}) == {ONE: 2}
    assert looks.look({}, {ONE: 5}, {ONE}) == {ONE: 4}
    assert looks.look({}, {}, set()) == {}, "between two assignments"
    assert looks.look({ONE: 5}, {}) == {ONE: 8}
    assert looks.look({ONE: 5}, {ONE: 5}) == {}
    assert looks.look({OTHER: 5}, {OTHER: 6}) == {OTHER: 0}, "it is new"
