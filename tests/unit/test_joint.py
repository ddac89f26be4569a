"""Flights that share a source: who is waited for, and for how long."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from cachebus import ConfigError, Policy
from cachebus.base.ids import Id
from cachebus.policy import Rules
from cachebus.reading.coalescing import Coalescing
from cachebus.reading.joint import JointLoad
from cachebus.reading.source import bind

RULES = Rules("row", Policy(retries=0))


class Rig:
    """A joint load, and what it has called its source for."""

    def __init__(self) -> None:
        self.calls: list[list[Id]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.joint = JointLoad(self.load, lambda ids: bind(self.load, ids, "acme", None), RULES, self)

    async def load(self, ids: list[Id]) -> dict[Id, str]:
        """The source."""
        self.calls.append(list(ids))
        await self.gate.wait()
        return {one: f"row {one}" for one in ids}

    def flight(self, one: Id, *, is_refresh: bool = False) -> Flying:
        """One more, which is expected."""
        return Flying(self.joint, one, is_refresh=is_refresh)


class Flying:
    """A flight: it does what it is told."""

    def __init__(self, joint: JointLoad, one: Id, *, is_refresh: bool) -> None:
        self._joint, self._load = joint, joint.load_of(one)
        self._orders: asyncio.Queue[str] = asyncio.Queue()
        self.task = asyncio.create_task(self._fly())
        joint.expect(self.task, is_refresh=is_refresh)
        self.task.add_done_callback(joint.leave)

    async def _fly(self) -> Any:
        while (order := await self._orders.get()) == "wait":
            with self._joint.aside(self.task):
                assert await self._orders.get() == "ask"
        return (await self._load(None)).value if order == "load" else None

    async def do(self, *orders: str) -> None:
        """These, one after the other."""
        for order in orders:
            self._orders.put_nowait(order)
            for _ in range(4):
                await asyncio.sleep(0)


async def test_the_source_is_called_once_nobody_is_expected() -> None:
    rig = Rig()
    a, b, c = map(rig.flight, "abc")
    await a.do("load")
    await b.do("end")
    assert not rig.calls
    await c.do("load")
    assert rig.calls == [["a", "c"]]
    assert await asyncio.gather(a.task, b.task, c.task) == ["row a", None, "row c"]


async def test_who_waits_for_another_load_is_not_waited_for_however_often_it_asks_again() -> None:
    rig = Rig()
    a, b, c = map(rig.flight, "abc")
    await a.do("load")
    await b.do("wait", "ask")
    assert not rig.calls
    d = rig.flight("d")  # nor is one that begins meanwhile
    await c.do("wait", "ask")
    assert rig.calls == [["a"]]
    await b.do("load")
    await c.do("wait")
    await d.do("end")
    assert rig.calls == [["a"], ["b"]]
    await c.do("ask", "load")
    assert rig.calls == [["a"], ["b"], ["c"]]
    await asyncio.gather(a.task, b.task, c.task, d.task)


async def test_refreshes_have_calls_of_their_own() -> None:
    rig = Rig()
    a, b = rig.flight("a"), rig.flight("b", is_refresh=True)
    await a.do("load")
    assert rig.calls == [["a"]]
    await b.do("load")
    assert rig.calls == [["a"], ["b"]]
    await asyncio.gather(a.task, b.task)


async def test_one_that_leaves_before_the_call_is_not_asked_for_and_the_last_one_ends_the_call() -> None:
    rig = Rig()
    rig.gate.clear()
    a, b, c = map(rig.flight, "abc")
    await a.do("load")
    a.task.cancel()
    await b.do("load")
    await c.do("load")
    assert rig.calls == [["b", "c"]]
    b.task.cancel()
    await asyncio.wait([b.task])
    calls = [task for task in asyncio.all_tasks() if task.get_name() == "cachebus-joint-load"]
    assert len(calls) == 1
    c.task.cancel()
    await asyncio.wait([c.task, *calls])
    assert calls[0].cancelled()


async def test_what_the_source_answers_as_the_last_one_leaves_is_heard() -> None:
    rig = Rig()
    rig.gate.clear()
    a = rig.flight("a")
    await a.do("load")
    rig.gate.set()
    await asyncio.sleep(0)  # it has answered, and nobody knows yet
    a.task.cancel()
    assert await a.task == "row a"


async def test_one_of_two_calls_of_a_tick_that_fails_has_an_error_of_its_own() -> None:
    rig = Rig()
    a, b = rig.flight("a"), rig.flight("b")
    rig.joint._bind = lambda ids: partial(dict, other=1)
    await a.do("load")
    await b.do("load")
    with pytest.raises(ConfigError, match="was not asked for") as first:
        await a.task
    with pytest.raises(ConfigError, match="was not asked for") as second:
        await b.task
    assert first.value is not second.value


async def test_only_calls_of_one_tick_that_are_alike_share() -> None:
    coalescing = Coalescing()

    def joint(alike: str, most: int = 2) -> JointLoad:
        return coalescing.joint(alike, None, most, lambda: Rig().joint)

    first = joint("a")
    assert joint("a") is first
    assert joint("b") is not first
    assert joint("a") is not first  # it is full
    await asyncio.sleep(0)
    later = joint("a")
    assert later is not first
