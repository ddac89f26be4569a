"""An invalidation whose caller was cancelled: it may have happened. The node believes nothing that it would have
replaced, and loses nothing else; whether it has happened or not, it gives what L2 gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from cachebus import Cache
from cachebus.core.doubts import DOUBTS_MAX, Doubts
from cachebus.core.node import DOUBT_S
from cachebus.testing import FakeClock
from tests.support.caches import asked, deaf, nodes, parts, until

Write = Callable[[Cache], Awaitable[Any]]
WRITES: dict[str, Write] = {
    "id in all contexts": lambda cache: cache.invalidate("doc", "1", "acme", contexts="all"),
    "type": lambda cache: cache.invalidate_scope("acme", "doc"),
    "context": lambda cache: cache.invalidate_scope("acme", agent_id="a"),
    "tag": lambda cache: cache.invalidate_tags(["t"], "acme"),
    "guard": lambda cache: cache.write_guard(tenant_id="acme", tags=["t"], db_timeout_s=1).__aenter__(),
}
ENTRIES: dict[str, dict[str, Any]] = {
    "1": {},
    "1 in a context": {"agent_id": "a"},
    "2": {},
    "2 with a tag": {"tags": ["t"]},
}
REPLACED = {
    "id in all contexts": {"1", "1 in a context"},
    "type": set(ENTRIES),
    "context": {"1 in a context"},
    "tag": {"2 with a tag"},
    "guard": {"2 with a tag"},
}


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """One that holds the entries, and as much of another type and of another tenant."""
    async with nodes(redis_url, 1, staleness_bound_s=10.0, probe_interval_s=0.05) as (cache,):
        for name, more in ENTRIES.items():
            await cache.set("doc", name[:1] if "context" in name else name, name, "acme", **more)
        await cache.set("other", "1", "other", "acme")
        await cache.set("doc", "1", "elsewhere", "other")
        await until(cache.ready)
        yield cache


async def found(cache: Cache, name: str, *, use_memory: bool = True) -> Any:
    """What a read of an entry gives."""
    agent = "a" if "context" in name else None
    return await cache.get("doc", name[:1] if agent else name, "acme", agent, use_memory=use_memory)


async def cancelled(cache: Cache, write: Write, *, happened: bool) -> None:
    """The write, cancelled before L2 has it, or when it has."""
    store, reached = parts(cache).store, asyncio.Event()

    def held(verb: str) -> Callable[..., Awaitable[Any]]:
        ask = getattr(store, verb)

        async def asks(*args: Any) -> Any:
            if happened:
                await ask(*args)
            reached.set()
            await asyncio.Event().wait()

        return asks

    for verb in ("invalidate", "guard"):
        setattr(store, verb, held(verb))
    task = asyncio.create_task(write(cache))  # type: ignore[arg-type]
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for verb in ("invalidate", "guard"):
        delattr(store, verb)


@pytest.mark.parametrize("happened", [True, False], ids=["happened", "did not happen"])
@pytest.mark.parametrize("name", WRITES)
async def test_it_costs_what_it_would_have_replaced_and_nothing_else(cache: Cache, name: str, happened: bool) -> None:
    await cancelled(cache, WRITES[name], happened=happened)
    for entry in ENTRIES:
        before = cache.stats().l1_hits
        expected = None if happened and entry in REPLACED[name] else entry
        assert await found(cache, entry) == expected
        assert cache.stats().l1_hits == before + (entry not in REPLACED[name]), entry
    with asked(cache) as calls:
        assert await cache.get("other", "1", "acme") == "other"
        assert await cache.get("doc", "1", "other") == "elsewhere"
    assert "get" not in calls
    assert "read" not in calls
    assert cache.stats().flushes == {"start": 1}
    for entry in ENTRIES:  # and what L2 believes is kept again
        expected = await found(cache, entry, use_memory=False)
        await found(cache, entry)
        before = cache.stats().l1_hits
        assert await found(cache, entry) == expected
        assert cache.stats().l1_hits == before + (expected is not None)


async def test_who_is_deaf_too_asks_l2_until_a_probe_tells(cache: Cache) -> None:
    """Its marks lack what has happened, and it knows that they may."""
    view, store, may_probe = parts(cache).node.shards[0], parts(cache).store, asyncio.Event()
    probe = store.probe

    async def probe_late(*args: Any, **more: Any) -> Any:
        await may_probe.wait()
        return await probe(*args, **more)

    store.probe = probe_late  # type: ignore[method-assign]
    with deaf(cache):
        await cancelled(cache, WRITES["tag"], happened=True)
        applied = view.applied
        for _ in range(3):
            assert await found(cache, "2 with a tag") is None
            assert await found(cache, "2") == "2"
        assert view.applied == applied
        may_probe.set()
        await until(lambda: view.applied > applied)
    assert await found(cache, "2 with a tag") is None
    assert cache.stats().flushes == {"start": 1}


async def test_too_many_cost_all_that_is_held(cache: Cache) -> None:
    tags = [f"t{n}" for n in range(DOUBTS_MAX + 1)]
    await cancelled(cache, lambda cache: cache.invalidate_tags(tags, "acme"), happened=False)
    assert cache.stats().flushes == {"start": 1, "unknown": 1}
    assert await found(cache, "1") == "1"


def test_a_doubt_goes_by_the_order_of_things() -> None:
    clock = FakeClock()
    doubts = Doubts()
    assert not doubts.cover(["a"], 0)
    assert doubts.note(["a", "b"], 5, clock())
    assert [doubts.cover(["x", "a"], count) for count in (4, 5)] == [True, False]
    assert not doubts.cover(["x"], 0)
    assert [doubts.open(["a"], clock() + late_s) for late_s in (-1, 0, 1)] == [True, True, False]
    assert not doubts.open(["x"], clock() - 1)
    clock.advance(1)
    doubts.note(["b"], 6, clock())
    assert doubts.cover(["b"], 5)
    assert not doubts.open(["a"], clock())
    doubts.settle(clock())
    assert len(doubts.scopes) == 1
    assert not doubts.cover(["a"], 0)


def test_too_many_doubts_leave_one_of_everything_until_a_later_probe() -> None:
    clock = FakeClock()
    doubts = Doubts()
    assert not doubts.note([f"t{n}" for n in range(DOUBTS_MAX + 1)], 5, clock())
    assert doubts.noted
    assert [doubts.open(["anything"], clock() + late_s) for late_s in (-1, 0, 1)] == [True, True, False]
    clock.advance(1)
    doubts.settle(clock())
    assert not doubts.noted


@pytest.mark.parametrize("count", [1, DOUBTS_MAX + 100])
async def test_a_probe_that_was_under_way_vouches_for_nothing_that_is_in_doubt(redis_url: str, count: int) -> None:
    """Its answer renews the lease, and knows of no mark that was made after it was sent."""
    tags = [f"t{n}" for n in range(count)]
    async with nodes(redis_url, 2, staleness_bound_s=20.0, probe_interval_s=10.0, gap_grace_s=0.0) as (a, b):
        await b.set("doc", "1", "old", "acme", tags=tags[:1])
        await a.probe()
        store: Any = parts(a).store
        probe, answer = store.probe, asyncio.Event()

        async def late(*args: Any, **how: Any) -> Any:
            reply = await probe(*args, **how)
            await answer.wait()
            return reply

        with deaf(a):
            store.probe = late
            probing = asyncio.create_task(a.probe())
            await asyncio.sleep(0.05)
            await cancelled(a, lambda cache: cache.invalidate_tags(tags, "acme"), happened=True)
            answer.set()
            await probing
            store.probe = probe
            assert await a.get("doc", "1", "acme") is None


async def test_old_doubts_are_forgotten_once_all_that_was_held_has_been_looked_at(cache: Cache) -> None:
    await cancelled(cache, lambda cache: cache.invalidate_tags(["t"], "acme"), happened=True)
    node = parts(cache).node
    (shard,) = node.shards
    assert shard.doubts.noted
    node.settle_doubts(node.clock())
    assert shard.doubts.noted, "a load may have begun before"
    await cache.probe()
    node.settle_doubts(node.clock() + 2 * DOUBT_S)
    assert not shard.doubts.noted
    assert await found(cache, "2 with a tag") is None
