"""The write guard in every order of what may happen around it, over the real code in memory; and without its rules.

A writer puts up its guard, commits, takes the guard away, and is killed at any step of that. A node loads what is
written, slowly: it reads the source at one moment, and has its answer at another. The store may lose everything that it
knows of guards. In the end, when every guard's time is over, nobody anywhere may hold what was before the commit; and
whoever took the guard away in order may count on that at once, on the own node.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest

from cachebus import Cache
from cachebus.l2.memory import MemoryShard
from cachebus.receipt import Receipt
from cachebus.testing import FakeClock, Fleet
from cachebus.writing.guard import WriteGuard
from cachebus.writing.write import Writer
from tests.support.caches import Source, until

D_S = 2.0
DB_S = 3.0
GUARD_S = 5.0
MAX_S = 8.0
WRITER = ("guard", "commit", "unguard")
LOADER = ("read", "answer")
LOSS = ("take over",)
COVERS: dict[str, dict[str, Any]] = {
    "key": {"targets": [("config", "x")]},
    "scope": {"scopes": ["config"]},
    "tag": {"tags": ["t"]},
}


def schedules() -> Iterator[tuple[str, ...]]:
    """Every order of what the writer does until it is killed, of the load, and of a takeover where there is one."""
    for last in range(1, len(WRITER) + 1):
        for loss in ((), LOSS):
            steps = [*WRITER[:last], *LOADER, *loss]
            for order in set(itertools.permutations(range(len(steps)))):
                told = tuple(steps[i] for i in order)
                if all(in_order(told, part) for part in (WRITER[:last], LOADER)):
                    yield told


def in_order(told: tuple[str, ...], part: tuple[str, ...]) -> bool:
    """Whether one actor's steps come one after the other."""
    places = [told.index(step) for step in part]
    return places == sorted(places)


class Stage:
    """Two nodes, a writer on the first, a loader on the second."""

    def __init__(self, fleet: Fleet, clock: FakeClock, covers: str, stands_s: float = GUARD_S) -> None:
        self.a, self.b = fleet.caches
        self.fleet, self.clock = fleet, clock
        self.source = Source(x="old")
        self.guard: WriteGuard = self.a.write_guard(
            tenant_id="acme", timeout_s=stands_s, db_timeout_s=DB_S, **COVERS[covers]
        )
        self.committed = False
        self.loading: asyncio.Task[Any] | None = None
        self.late: asyncio.Task[Any] | None = None
        """A read that begins when the guard was taken away, and the other node has heard of it."""

    async def do(self, step: str) -> None:
        """One step."""
        if step == "guard":
            await self.guard.__aenter__()
        elif step == "commit":
            self.source.values["x"], self.committed = "new", True
        elif step == "unguard":
            await self.guard.__aexit__(None, None, None)
            assert await self.seen(self.a) in (None, "new"), "own node"
            await self.fleet.settle()
            self.late = asyncio.create_task(self.load())
        elif step == "read":
            self.source.hold()
            self.loading = asyncio.create_task(self.load())
            await until(lambda: self.source.asked.is_set() or self.loading.done())  # type: ignore[union-attr]
        elif step == "answer":
            self.source.release()
            assert self.loading is not None
            await self.loading
        else:
            self.fleet.world.shards[0].server += "'"
        await self.fleet.settle()

    async def load(self) -> Any:
        """A read by the loader's node."""
        return await self.b.get_or_load("config", "x", self.source.load, "acme", tags=["t"], ttl=3600)

    async def seen(self, cache: Cache) -> object:
        """What a node has for it."""
        return await cache.get("config", "x", "acme")

    async def pass_on(self, by_s: float) -> None:
        """Time goes on, and nodes live through it."""
        for _ in range(int(by_s)):
            self.clock.advance(1.0)
            await self.fleet.probe()
            await self.fleet.settle()


async def broken(told: tuple[str, ...], covers: str, *, cached: bool = False) -> str:
    """What a schedule breaks, "" for nothing."""
    clock = FakeClock()
    settings = {"staleness_bound_s": D_S, "probe_interval_s": 1.0, "guard_max_s": MAX_S, "lease_ms": 60_000}
    async with Fleet(2, clock=clock, **settings) as fleet:
        stage = Stage(fleet, clock, covers)
        if cached:
            await stage.b.set("config", "x", "old", "acme", tags=["t"], ttl=3600)
            await stage.a.get("config", "x", "acme")
        # A transaction ends by DB_S after its guard began; here it takes no time at all.
        for step in told:
            await stage.do(step)
        stage.source.release()
        if stage.late is not None and await stage.late != "new":
            return "who comes after the guard gets what was before the commit"
        await stage.pass_on(MAX_S * 2 if LOSS[0] in told else GUARD_S + 1)
        if stage.committed:
            for cache in fleet.caches:
                for use_memory in (True, False):
                    got = await cache.get("config", "x", "acme", use_memory=use_memory)
                    if got == "old":
                        return f"{'L1' if use_memory else 'L2'} gives what was before the commit"
    return ""


@pytest.mark.parametrize("covers", COVERS)
async def test_whenever_the_writer_is_killed_nothing_old_is_left(covers: str) -> None:
    for told in schedules():
        for cached in (True, False):
            assert not await broken(told, covers, cached=cached), f"{covers}, {cached}: {', '.join(told)}"


async def test_who_comes_when_a_guard_may_be_over_joins_no_load_that_began_under_it() -> None:
    clock = FakeClock()
    settings = {"staleness_bound_s": 60.0, "probe_interval_s": 1.0, "guard_max_s": 120.0, "lease_ms": 60_000}
    async with Fleet(2, clock=clock, **settings) as fleet:
        stage = Stage(fleet, clock, "key", 70.0)
        for step in ("guard", "read"):
            await stage.do(step)
        joined = asyncio.create_task(stage.b.get_or_load("config", "x", stage.source.load, "acme"))
        await fleet.settle()
        assert stage.source.calls == 1, "while it stands they share"
        await stage.do("commit")
        await stage.pass_on(70)
        late = asyncio.create_task(stage.b.get_or_load("config", "x", stage.source.load, "acme"))
        await fleet.settle()
        assert stage.source.calls == 2
        await stage.do("answer")
        assert (await joined, await late) == ("old", "new")


@pytest.mark.parametrize("answer_s", [2, 9], ids=["stored before lost guards end", "stored after"])
async def test_what_was_loaded_before_lost_guards_have_ended_is_gone_then(answer_s: int) -> None:
    """The takeover has lost the guard, so the load is granted; its writer is killed after the commit. What was read
    before that may be kept until the longest guard of the lost epoch has ended, however late it is stored."""
    clock = FakeClock()
    settings = {"staleness_bound_s": D_S, "probe_interval_s": 1.0, "guard_max_s": MAX_S, "lease_ms": 60_000}
    async with Fleet(2, clock=clock, **settings) as fleet:
        stage = Stage(fleet, clock, "key")
        for step in ("guard", "take over"):
            await stage.do(step)
        await stage.pass_on(2)
        for step in ("read", "commit"):
            await stage.do(step)
        await stage.pass_on(answer_s - 2)
        await stage.do("answer")
        assert await stage.seen(stage.b) == ("old" if answer_s < MAX_S else None)
        await stage.pass_on(MAX_S + 1 - answer_s)
        for cache in fleet.caches:
            for use_memory in (True, False):
                assert await cache.get("config", "x", "acme", use_memory=use_memory) is None
        assert await stage.load() == "new"
        await stage.pass_on(2 * MAX_S)
        assert await stage.seen(stage.b) == "new", "what was loaded since then lives by its own time"


# -- without a rule ----------------------------------------------------------------------------------------------


async def _unguard_silently(writer: Any, plan: Any, token: str, *, wait: bool = False) -> Any:
    writer._store._shards[plan.shard].guards.clear()
    return Receipt(plan.shard, "0" * 16, 0, stored=False)


_LONG_AGO: Any = property(lambda _: float("-inf"), lambda *_: None)
RULES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "taking a guard away invalidates": (Writer, "unguard", _unguard_silently),
    "nothing is stored under a guard": (MemoryShard, "guarded_ms", lambda *_: None),
    "after a takeover records are short-lived": (MemoryShard, "born_s", _LONG_AGO),
}


@pytest.mark.parametrize("rule", RULES)
async def test_without_a_rule_something_old_is_left(rule: str) -> None:
    owner, name, instead = RULES[rule]
    found = []
    with patch.object(owner, name, instead, create=True):
        for told in schedules():
            try:
                found += [told] if await broken(told, "key") else []
            except AssertionError:
                found.append(told)
    assert found, f"nothing needs the rule: {rule}"
    print(rule, "-", min(found, key=len))
