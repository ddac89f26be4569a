"""Loads that wait for one another in a circle are found at once, in whichever order they began; others never are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

import pytest

from cachebus.errors import ConfigError
from cachebus.keys.key import Keyspace
from cachebus.reading import reentrance
from cachebus.reading.reentrance import Loading, check, waiting_for
from tests.support.caches import until

SPACE = Keyspace(1)
Loader = Callable[[], Awaitable[Any]]


class Desk:
    """A single flight a key, as a reader has it."""

    def __init__(self) -> None:
        self.flights: dict[str, tuple[Loading, asyncio.Task[Any]]] = {}

    async def load(self, resource_id: str, loader: Loader) -> Any:
        """Join the flight of this key, or begin one."""
        key = SPACE.key("doc", resource_id, "acme")
        check(self, key)
        if resource_id not in self.flights:
            self.begin(resource_id, loader)
        loading, task = self.flights[resource_id]
        with waiting_for(loading):
            return await asyncio.shield(task)

    def begin(self, resource_id: str, loader: Loader) -> asyncio.Task[Any]:
        """Begin a flight that nobody waits for yet."""
        loading = Loading(self, SPACE.key("doc", resource_id, "acme"))

        async def fly() -> Any:
            try:
                with loading:
                    return await loader()
            finally:
                self.flights.pop(resource_id, None)

        self.flights[resource_id] = loading, asyncio.create_task(fly())
        return self.flights[resource_id][1]


@pytest.fixture
def desk() -> Desk:
    """One reader."""
    return Desk()


async def within(awaited: Awaitable[Any]) -> Any:
    """A cycle that is not found hangs: the test must not."""
    return await asyncio.wait_for(awaited, 5)


def cycle(*ids: str) -> str:
    return " -> ".join(f"acme:doc:{i}" for i in ids)


# -- cycles ----------------------------------------------------------------------------------------------


async def test_a_loader_that_asks_for_its_own_key(desk: Desk) -> None:
    async def a() -> Any:
        return await desk.load("a", a)

    with pytest.raises(ConfigError, match=cycle("a", "a")):
        await within(desk.load("a", a))
    assert not desk.flights


async def test_a_cycle_names_its_keys_in_order(desk: Desk) -> None:
    async def start() -> Any:
        return await desk.load("a", a)

    async def a() -> Any:
        return await desk.load("b", b)

    async def b() -> Any:
        return await desk.load("c", c)

    async def c() -> Any:
        return await desk.load("a", a)

    with pytest.raises(ConfigError, match=f"itself: {cycle('a', 'b', 'c', 'a')}[.]"):
        await within(desk.load("start", start))


@pytest.mark.parametrize("through", ["task", "group", "gather", "thread"])
async def test_what_a_loader_starts_belongs_to_it(desk: Desk, through: str) -> None:
    loop = asyncio.get_running_loop()

    async def a() -> Any:
        if through == "task":
            return await asyncio.create_task(desk.load("b", b))
        if through == "gather":
            return await asyncio.gather(desk.load("b", b), asyncio.sleep(0))
        if through == "thread":
            return await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(desk.load("b", b), loop).result(5))
        async with asyncio.timeout(5):
            return await asyncio.ensure_future(desk.load("b", b))

    async def b() -> Any:
        return await desk.load("a", a)

    with pytest.raises(ConfigError, match=cycle("a", "b", "a")):
        await within(desk.load("a", a))


@pytest.mark.parametrize("first", ["a", "b"])
async def test_a_cycle_of_loads_that_others_began(desk: Desk, first: str) -> None:
    """1. X begins A, and Y begins B. 2. `first`'s loader joins the other's load. 3. The other's asks for `first`."""
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}
    other = {"a": "b", "b": "a"}

    def loader(me: str) -> Loader:
        async def load() -> Any:
            await gates[me].wait()
            return await desk.load(other[me], loader(other[me]))

        return load

    tasks = {me: asyncio.create_task(desk.load(me, loader(me))) for me in "ab"}
    await asyncio.sleep(0)
    gates[first].set()
    await until(lambda: desk.flights[other[first]][0].waiters)
    gates[other[first]].set()
    for task in tasks.values():
        with pytest.raises(ConfigError, match=cycle(first, other[first], first)):
            await within(task)


async def test_a_cycle_through_two_readers() -> None:
    one, other = Desk(), Desk()

    async def a() -> Any:
        return await other.load("a", b)

    async def b() -> Any:
        return await one.load("a", a)

    with pytest.raises(ConfigError, match=cycle("a", "a", "a")):
        await within(one.load("a", a))


async def test_a_key_that_was_begun_anew_is_the_same_key(desk: Desk) -> None:
    """A load that nobody may join any more is no way around: the next would ask again, without end."""
    loads = 0

    async def a() -> Any:
        nonlocal loads
        loads += 1
        del desk.flights["a"]
        return await desk.load("a", a)

    with pytest.raises(ConfigError):
        await within(desk.load("a", a))
    assert loads == 1


async def test_a_load_inside_another_of_its_task_gives_way_to_it_again(desk: Desk) -> None:
    outer, inner = (Loading(desk, SPACE.key("doc", i, "acme")) for i in "ab")
    with outer:
        with inner, pytest.raises(ConfigError, match=cycle("b", "b")):
            check(desk, inner.key)
        check(desk, inner.key)
        with pytest.raises(ConfigError, match=cycle("a", "a")):
            check(desk, outer.key)
    check(desk, outer.key)


# -- what is none ----------------------------------------------------------------------------------------


async def test_loads_that_share_a_part_are_no_cycle(desk: Desk) -> None:
    async def one() -> int:
        await asyncio.sleep(0)
        return 1

    async def pair(*ids: str) -> int:
        return sum(await asyncio.gather(*(desk.load(i, one) for i in ids)))

    async def whole() -> int:
        return await desk.load("ab", lambda: pair("a", "b")) + await desk.load("ac", lambda: pair("a", "c", "a"))

    assert await within(desk.load("abac", whole)) == 5
    assert await within(asyncio.gather(desk.load("abac", whole), desk.load("ab", lambda: pair("a", "b")))) == [5, 2]


async def test_the_same_key_of_another_reader_is_another() -> None:
    one, other = Desk(), Desk()

    async def inner() -> int:
        return 1

    assert await within(one.load("a", lambda: other.load("a", inner))) == 1


async def test_a_refresh_that_a_loader_sets_off_may_ask_for_that_loaders_key(desk: Desk) -> None:
    """The loader of A has found an old B and goes on; the new B is loaded in the background, and waits for A."""
    go_on = asyncio.Event()
    refreshes = []

    async def a() -> str:
        refreshes.append(desk.begin("b", b))
        await go_on.wait()
        return "a"

    async def b() -> str:
        asyncio.get_running_loop().call_soon(go_on.set)
        return "b of " + str(await desk.load("a", a))

    assert await within(desk.load("a", a)) == "a"
    assert await within(refreshes[0]) == "b of a"


async def test_a_task_that_outlives_its_load_may_ask_for_its_key(desk: Desk) -> None:
    later = []
    over = asyncio.Event()

    async def one() -> int:
        return 1

    async def after() -> Any:
        await over.wait()
        return await desk.load("a", lambda: desk.load("b", one))

    async def a() -> int:
        later.append(asyncio.create_task(after()))
        return 0

    assert await within(desk.load("a", a)) == 0
    over.set()
    assert await within(later[0]) == 1


async def test_who_has_stopped_waiting_is_in_no_cycle(desk: Desk) -> None:
    """1. The loader of A waits for B, and gives up. 2. B's loader asks for A: that is late, and no cycle."""
    gate = asyncio.Event()

    async def a() -> str:
        try:
            async with asyncio.timeout(0):
                await desk.load("b", b)
        except TimeoutError:
            gate.set()
            await until(lambda: desk.flights["a"][0].waiters)
        return "a"

    async def b() -> Any:
        await gate.wait()
        return await desk.load("a", a)

    began_by_others = desk.begin("b", b)
    assert await within(desk.load("a", a)) == "a"
    assert await within(began_by_others) == "a"


async def test_who_has_stopped_waiting_in_one_of_two_tasks_waits_still(desk: Desk) -> None:
    gate = asyncio.Event()

    async def a() -> Any:
        left, waits = (asyncio.create_task(desk.load("b", b)) for _ in range(2))
        await until(lambda: "b" in desk.flights and list(desk.flights["b"][0].waiters.values()) == [2])
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        gate.set()
        return await waits

    async def b() -> Any:
        await gate.wait()
        return await desk.load("a", a)

    with pytest.raises(ConfigError, match=cycle("a", "b", "a")):
        await within(desk.load("a", a))


async def test_nothing_is_left_behind(desk: Desk) -> None:
    seen = []

    async def b() -> int:
        seen.append(desk.flights["b"][0])
        await asyncio.sleep(0)
        return 1

    async def a() -> Any:
        seen.append(desk.flights["a"][0])
        return await asyncio.gather(*(desk.load("b", b) for _ in range(3)))

    assert await within(desk.load("a", a)) == [1, 1, 1]
    assert all(loading.over and not loading.waiters for loading in seen)
    assert reentrance._innermost.get() is None


def test_a_load_that_is_closed_in_anothers_context_leaves_that_one_alone() -> None:
    elsewhere, here = Loading(1, SPACE.key("doc", "a", "acme")), Loading(1, SPACE.key("doc", "b", "acme"))
    copy_context().run(elsewhere.__enter__)
    with here:
        elsewhere.__exit__(None, None, None)
        assert reentrance._innermost.get() is here
