"""When the part `items` of a worker's health is down, by count and by time."""

from __future__ import annotations

import pytest

from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.in_a_row import ALL_DEAD, APART_S, ITEMS, PLACES, TIMES, InARow
from cachebus.consumers.worker.source import Item
from cachebus.testing import FakeClock
from tests.support.memory_source import MemorySession, MemorySource

DAY_S = 86_400.0
LETTER = DeadLetter(b"", "a reason", "1", 1)


class Rows:
    """Counts what becomes of items, by a clock that tests move."""

    def __init__(self) -> None:
        self.clock, self.source = FakeClock(), MemorySource()
        self.session = MemorySession(self.source)
        self.health = WorkerHealth("test", (ITEMS,))
        self.rows = InARow("test", self.source, self.health, self.clock)
        self.at = 0

    def come(self, fates: str, origin: str = "") -> None:
        """One batch of items: d dead, a applied, i ignored."""
        items = [Item(str(self.at + at), self.at + at) for at in range(len(fates))]
        self.at += len(items)
        self.source.origins = lambda _: origin
        aside = {id(item): "a reason" for item, fate in zip(items, fates, strict=True) if fate == "d"}
        ignored = {id(item) for item, fate in zip(items, fates, strict=True) if fate == "i"}
        self.rows.note(self.session, items, aside, ignored)

    async def is_up(self) -> bool:
        """Whether it is, after a look."""
        await self.rows.look(self.session)
        return self.health.is_up(ITEMS)

    @property
    def why(self) -> str:
        """What is told."""
        return str(self.health.as_dict()["parts"][ITEMS]["why"])


@pytest.fixture
def rows() -> Rows:
    return Rows()


async def test_no_time_makes_it_forget_what_nobody_has_seen_to(rows: Rows) -> None:
    """Five quiet minutes did."""
    rows.come("d" * ALL_DEAD)
    for _ in range(100):
        rows.clock.advance(DAY_S)
        assert not await rows.is_up()
    rows.come("a")
    assert await rows.is_up()


async def test_where_all_of_a_slow_stream_is_dead_it_is_told_and_stays_so(rows: Rows) -> None:
    """One every ten minutes was never told."""
    for count in range(1, 3 * ALL_DEAD):
        rows.come("d")
        assert await rows.is_up() is (count < TIMES)
        rows.clock.advance(600.0)
        assert await rows.is_up() is (count < TIMES)


async def test_an_odd_row_of_an_idle_source_tells_nobody(rows: Rows) -> None:
    rows.come("d")
    rows.clock.advance(100 * DAY_S)
    assert await rows.is_up()


async def test_several_at_one_time_are_one_slip(rows: Rows) -> None:
    for _ in range(TIMES + 1):
        rows.come("d")
        rows.clock.advance(APART_S / (TIMES + 1))
    assert await rows.is_up()


@pytest.mark.parametrize("between", ["a", "ai"])
async def test_odd_ones_among_others_are_never_all(rows: Rows, between: str) -> None:
    for _ in range(100):
        rows.clock.advance(600.0)
        rows.come("d" + between)
        assert await rows.is_up()


async def test_what_is_ignored_between_them_ends_no_row(rows: Rows) -> None:
    rows.come("di" * ALL_DEAD)
    assert not await rows.is_up()


async def test_letters_are_asked_for_from_the_first_of_the_row_on(rows: Rows) -> None:
    rows.source.is_seen = True
    rows.source.dead.append(LETTER)
    rows.come("d" * ALL_DEAD)
    rows.clock.advance(DAY_S)
    assert not await rows.is_up()
    assert DAY_S < rows.source.asked_s[-1] < DAY_S + 600
    rows.source.dead.clear()
    assert await rows.is_up()
    asked = len(rows.source.asked_s)
    assert await rows.is_up()
    assert len(rows.source.asked_s) == asked, "where nothing is wrong nobody is asked"


async def test_what_is_set_aside_while_letters_are_looked_for_is_not_forgotten(rows: Rows) -> None:
    rows.source.is_seen = True

    def one_more() -> None:
        rows.clock.advance(0.1)
        rows.come("d")

    rows.source.faults["has_letters"] = one_more
    rows.come("d" * ALL_DEAD)
    assert not await rows.is_up()


async def test_where_nobody_sees_the_letters_it_is_said_what_ends_it(rows: Rows) -> None:
    rows.come("d" * ALL_DEAD)
    assert not await rows.is_up()
    assert "this worker can't see whether they still lie there" in rows.why
    rows.source.is_seen = True
    rows.source.dead.append(LETTER)
    assert not await rows.is_up()
    assert "can't see" not in rows.why


async def test_what_another_worker_has_by_now_is_its_to_tell(rows: Rows) -> None:
    """A partition that has moved, or a slot, would be told here for ever."""
    rows.come("d" * ALL_DEAD, origin="topic/0")
    rows.come("a" + "d" * ALL_DEAD, origin="topic/1")
    assert not await rows.is_up()
    rows.source.elsewhere.add("topic/1")
    assert not await rows.is_up()
    assert f"the last {ALL_DEAD} of topic/0 could not" in rows.why
    rows.source.elsewhere.add("topic/0")
    assert await rows.is_up()


async def test_places_that_are_many_push_out_no_row_that_is_told(rows: Rows) -> None:
    rows.come("d" * ALL_DEAD, origin="the one")
    for number in range(2 * PLACES):
        rows.come("d", origin=str(number))
    rows.come("a", origin="another")
    assert not await rows.is_up()
    assert "of the one could not" in rows.why
    assert len(rows.rows._rows) <= PLACES
