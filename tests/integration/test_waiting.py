"""Waiting for another node's load, in virtual time: quick where few wait, no flood of scripts where thousands do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest

from cachebus import Cache, LoadTimeout, Policy
from cachebus.reading.miss import BACKOFF_MAX_S
from cachebus.reading.waiting import POLLS_AT_ONCE, POLLS_PER_S, Waiters
from cachebus.testing import Faults, Fleet
from tests.support.caches import Source, parts
from tests.support.simulation import VirtualLoop, live

MANY = 4_000
Loads = list[asyncio.Task[Any]]


class Asked:
    """When a cache asked for a lease, in virtual seconds, and for which key."""

    def __init__(self, cache: Cache, loop: VirtualLoop) -> None:
        self.times: list[tuple[float, str]] = []
        store: Any = parts(cache).store
        lease = store.fill_lease

        def noted(key: Any, *args: Any, **options: Any) -> Any:
            self.times.append((loop.time(), key.resource_id))
            return lease(key, *args, **options)

        store.fill_lease = noted

    def busiest(self) -> int:
        """The most in any second."""
        times = [at for at, _ in self.times]
        most = first = 0
        for last, at in enumerate(times):
            while times[first] <= at - 1:
                first += 1
            most = max(most, last - first + 1)
        return most


Play = Callable[[VirtualLoop, Cache, Source, Asked], Coroutine[Any, Any, None]]


def loads(cache: Cache, source: Source, count: int) -> Loads:
    return [
        asyncio.create_task(cache.get_or_load("config", str(at), source.load, tenant_id="acme")) for at in range(count)
    ]


def staged(play: Play, count: int, faults: Faults | None = None) -> None:
    """A node loads so many keys from a source that does not answer yet; then comes the play, of another node that finds
    them loading."""

    async def main(loop: VirtualLoop) -> None:
        async with Fleet(2, clock=loop.time, faults=faults) as fleet:
            a, b = fleet.caches
            source = Source(**{str(at): at for at in range(count)})
            source.hold()
            first = loads(a, source, count)
            await asyncio.sleep(0.001)
            assert source.calls == count
            await play(loop, b, source, Asked(b, loop))
            source.release()
            await asyncio.gather(*first)
            assert_nothing_left(b)

    live(main)


def assert_nothing_left(cache: Cache) -> None:
    waiters = parts(cache).loads._parts.waiters
    assert not len(waiters)
    assert not waiters._waiting
    assert not waiters._line


def test_thousands_that_wait_ask_in_turn_and_are_woken_at_once() -> None:
    async def play(loop: VirtualLoop, cache: Cache, source: Source, asked: Asked) -> None:
        waiting = loads(cache, source, MANY)
        await asyncio.sleep(0.001)
        assert len(asked.times) == MANY, "all ask for the lease at first"
        asked.times.clear()
        await asyncio.sleep(2 * MANY / POLLS_PER_S)
        assert POLLS_PER_S * 0.9 <= asked.busiest() <= POLLS_PER_S + POLLS_AT_ONCE + 1
        assert len({key for _, key in asked.times}) == MANY, "each had its turn"
        assert len(asked.times) < 2.1 * MANY
        source.release()
        before_s = loop.time()
        assert await asyncio.gather(*waiting) == list(range(MANY))
        assert loop.time() - before_s < BACKOFF_MAX_S

    staged(play, MANY)


def test_without_hints_they_are_told_in_turn() -> None:
    async def play(loop: VirtualLoop, cache: Cache, source: Source, asked: Asked) -> None:
        waiting = loads(cache, source, MANY)
        await asyncio.sleep(0.5)
        asked.times.clear()
        source.release()
        before_s = loop.time()
        assert await asyncio.gather(*waiting) == list(range(MANY))
        assert loop.time() - before_s <= MANY / POLLS_PER_S + BACKOFF_MAX_S
        assert asked.busiest() <= POLLS_PER_S + POLLS_AT_ONCE + 1

    staged(play, MANY, Faults(drop=1))


def test_one_that_waits_asks_as_soon_as_its_pauses_say() -> None:
    async def play(loop: VirtualLoop, cache: Cache, source: Source, asked: Asked) -> None:
        waiting = loads(cache, source, 1)
        await asyncio.sleep(0.5)
        times = [at for at, _ in asked.times]
        pauses = [later - at for at, later in pairwise(times)]
        assert pauses == pytest.approx([0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.1, 0.1])
        source.release()
        await asyncio.gather(*waiting)

    staged(play, 1)


def test_few_that_wait_are_as_quick_as_one() -> None:
    async def play(loop: VirtualLoop, cache: Cache, source: Source, asked: Asked) -> None:
        waiting = loads(cache, source, 30)
        await asyncio.sleep(1)
        asked.times.clear()
        await asyncio.sleep(1)
        assert len(asked.times) == pytest.approx(30 / BACKOFF_MAX_S, rel=0.05)
        source.release()
        await asyncio.gather(*waiting)

    staged(play, 30)


def test_who_left_holds_up_nobody() -> None:
    async def play(loop: VirtualLoop, cache: Cache, source: Source, asked: Asked) -> None:
        waiting = loads(cache, source, MANY)
        await asyncio.sleep(1)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
        await asyncio.sleep(0)
        assert_nothing_left(cache)
        asked.times.clear()
        before_s = loop.time()
        one = loads(cache, source, 1)
        await asyncio.sleep(0.5)
        assert [at - before_s for at, _ in asked.times][:4] == pytest.approx([0.0, 0.005, 0.015, 0.035], abs=0.003)
        source.release()
        await asyncio.gather(*one)

    staged(play, MANY)


@pytest.mark.parametrize("count", [1, 30, MANY])
def test_none_waits_longer_than_a_load_may_take(count: int) -> None:
    async def play(loop: VirtualLoop, cache: Cache, source: Source, asked: Asked) -> None:
        cache.register(policies={"config": Policy(load_timeout_s=2, retries=0)})
        before_s = loop.time()
        waiting = loads(cache, source, count)
        await asyncio.sleep(0.001)
        asked.times.clear()
        for each in waiting:
            with pytest.raises(LoadTimeout, match="another node has been loading for 2 s"):
                await each
        assert 2 <= loop.time() - before_s <= 2 + 2 * BACKOFF_MAX_S
        assert asked.busiest() <= POLLS_PER_S + POLLS_AT_ONCE + 1

    staged(play, count)


# -- the line itself ---------------------------------------------------------------------------------------------------


def test_a_hint_wakes_all_of_its_key_and_no_other() -> None:
    async def main(loop: VirtualLoop) -> None:
        waiters = Waiters()
        waiting = [asyncio.create_task(waiters.wait(key, 5, 10)) for key in "xxy"]
        await asyncio.sleep(1)
        waiters.wake("x")
        waiters.wake("nobody")
        await asyncio.sleep(0.001)
        assert [each.done() for each in waiting] == [True, True, False]
        assert len(waiters) == 1
        assert await asyncio.gather(*waiting) == [True] * 3
        assert loop.time() == pytest.approx(1_005)
        assert not len(waiters)

    live(main)


def test_they_ask_in_the_order_in_which_their_pauses_end_and_the_last_have_no_turn_in_time() -> None:
    async def main(loop: VirtualLoop) -> None:
        waiters, order = Waiters(), list[int]()

        async def wait(number: int) -> None:
            if await waiters.wait(str(number), 1 - number / 10_000, 1.5):
                order.append(number)

        await asyncio.gather(*(wait(number) for number in range(1_000)))
        assert order == sorted(order, reverse=True)
        assert 0.5 * POLLS_PER_S < len(order) <= 0.6 * POLLS_PER_S + POLLS_AT_ONCE + 1
        assert not waiters._line

    live(main)
