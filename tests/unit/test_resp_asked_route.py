"""When a route asks where the primaries are: how often, for how many callers, and what becomes of what it knew."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.asked_route import REFRESH_MAX_S, REFRESH_S, AskedRoute
from cachebus.testing import FakeClock

HERE, THERE = Address("here", 1), Address("there", 2)


class Asked(AskedRoute):
    """A route of one shard, whose others answer as the test says."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(1, 5.0, clock)
        self.turned = clock
        self.answer: Address | None = HERE
        self.takes_s = 0.0
        self.asked_at_s: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def _found(self) -> tuple[list[Address | None], bool]:
        self.asked_at_s.append(self.turned())
        await self.gate.wait()
        self.turned.advance(self.takes_s)
        if self.answer is None:
            raise L2Unavailable("nobody says where the primary is")
        return [self.answer], True

    def beside(self, shard: int, host: str, port: int) -> Address:
        return replace(HERE, host=host, port=port)

    def __str__(self) -> str:
        return "asked"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def route(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Its pauses turn the clock."""

    async def slept(pause_s: float) -> None:
        clock.advance(pause_s)

    monkeypatch.setattr(asyncio, "sleep", slept)
    return Asked(clock)


async def refreshed(route: Asked) -> float:
    """Have it asked, a little later than now; how long after now that was, in seconds."""
    before_s, asked = route.turned(), len(route.asked_at_s)
    route.turned.advance(0.001)
    try:
        await route.refresh(route.turned())
    finally:
        assert len(route.asked_at_s) == asked + 1
    return route.asked_at_s[-1] - before_s


async def in_vain(route: Asked) -> float:
    """The same while nobody answers."""
    before_s, route.answer = route.turned(), None
    with pytest.raises(L2Unavailable, match="nobody says"):
        await refreshed(route)
    return route.asked_at_s[-1] - before_s


async def test_the_first_is_asked_at_once_and_what_it_says_is_known(route: Asked) -> None:
    moved: list[int] = []
    route.watch(moved.extend)
    assert await refreshed(route) <= 0.01
    assert (route.known, moved) == ([HERE], [0])
    await refreshed(route)
    assert moved == [0]
    route.answer = THERE
    await refreshed(route)
    assert (route.known, moved) == ([THERE], [0, 0])


async def test_a_pause_begins_when_the_asking_has_ended(route: Asked) -> None:
    route.takes_s = 3 * REFRESH_S
    for route.answer in (HERE, THERE, HERE):
        await refreshed(route)
        assert REFRESH_S / 2 <= await refreshed(route) <= REFRESH_MAX_S


async def test_after_an_asking_in_vain_too(route: Asked) -> None:
    route.takes_s = 10.0
    pauses_s = [await in_vain(route) for _ in range(12)]
    assert 0.02 < pauses_s[1] <= 0.06
    assert 1 <= pauses_s[-1] <= 2.01


async def test_what_was_known_stays_known_and_pauses_begin_anew_once_somebody_answers(route: Asked) -> None:
    for _ in range(12):
        await in_vain(route)
    route.answer = HERE
    await refreshed(route)
    await in_vain(route)
    assert route.known == [HERE]
    assert await in_vain(route) <= 0.06


async def test_pauses_grow_while_nothing_new_is_found(route: Asked) -> None:
    pauses_s = [await refreshed(route) for _ in range(40)]
    assert min(pauses_s[1:3]) >= REFRESH_S / 2
    assert max(pauses_s[1:3]) <= REFRESH_S * 1.01
    assert all(REFRESH_MAX_S / 2 <= pause_s <= REFRESH_MAX_S * 1.01 for pause_s in pauses_s[-5:])
    route.answer = THERE
    await refreshed(route)
    assert await refreshed(route) <= REFRESH_S * 1.01


async def test_who_looks_after_a_while_begins_with_short_pauses(route: Asked) -> None:
    for _ in range(40):
        await refreshed(route)
    route.turned.advance(100.0)
    assert await refreshed(route) <= 0.01
    assert await refreshed(route) <= REFRESH_S * 1.01


async def test_all_who_ask_meanwhile_share_one_asking(route: Asked, clock: FakeClock) -> None:
    route.gate.clear()
    callers = [asyncio.create_task(route.refresh(clock())) for _ in range(3)]
    while not route.asked_at_s:
        await asyncio.wait(callers, timeout=0)
    callers[0].cancel()  # who leaves takes it from nobody
    route.gate.set()
    done = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(each) for each in done] == [asyncio.CancelledError, type(None), type(None)]
    assert len(route.asked_at_s) == 1
    await route.refresh(route.asked_at_s[0])  # somebody has asked since then
    assert len(route.asked_at_s) == 1


async def test_who_asks_while_an_older_asking_goes_on_has_it_asked_again(route: Asked, clock: FakeClock) -> None:
    route.gate.clear()
    first = asyncio.create_task(route.refresh(clock()))
    while not route.asked_at_s:
        await asyncio.wait([first], timeout=0)
    clock.advance(1.0)
    second = asyncio.create_task(route.refresh(clock()))
    await asyncio.wait([second], timeout=0)
    route.gate.set()
    await asyncio.gather(first, second)
    assert len(route.asked_at_s) == 2


async def test_a_route_that_is_closed_leaves_nobody_waiting(route: Asked, clock: FakeClock) -> None:
    route.gate.clear()
    caller = asyncio.create_task(route.refresh(clock()))
    while not route.asked_at_s:
        await asyncio.wait([caller], timeout=0)
    await route.close()
    with pytest.raises(L2Unavailable, match="closed"):
        await caller
