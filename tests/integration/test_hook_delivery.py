"""How hooks are told: later, in order, each alone; whatever a callback does, nobody else notices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cachebus import Cache, ConfigError, InvalidatedEvent, LoadedEvent
from cachebus.base.clock import monotonic
from cachebus.testing import FakeClock, Fleet
from tests.support.caches import nodes, parts, quick, until
from tests.support.logs import told


async def idle(cache: Cache) -> None:
    """Until all has been told."""
    await until(parts(cache).listening.telling._idle.is_set)


async def load(cache: Cache, *ids: int) -> None:
    for one in ids:
        await cache.get_or_load("config", one, lambda: 1, "acme")


async def test_events_come_in_order_to_sync_and_async_callbacks_and_no_read_waits(redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=10.0) as (a,):
        seen: list[str] = []
        gate = asyncio.Event()

        @a.on("loaded")
        async def slowly(event: LoadedEvent) -> None:
            await gate.wait()
            seen.append(f"async {event.key.resource_id}")

        hook = a.on("loaded", lambda event: seen.append(f"sync {event.key.resource_id}"))
        a.on("invalidated", lambda event: seen.append(f"gone {event.keys[0].resource_id}"))
        await load(a, 1, 2)
        await a.invalidate("config", 1, "acme")
        await load(a, 3)
        assert seen == []
        gate.set()
        await idle(a)
        assert seen == ["async 1", "sync 1", "async 2", "sync 2", "gone 1", "async 3", "sync 3"]
        assert repr(hook).startswith("<hook loaded: ")


async def test_a_callback_may_call_the_cache_itself(redis_url: str) -> None:
    async with nodes(redis_url, 2, l2_timeout_s=10.0) as (a, b):

        @b.on("invalidated")
        async def warm(event: InvalidatedEvent) -> None:
            for key in event.keys:
                if key.data_type == "config":
                    await b.get_or_load(loader=lambda: "warm", **key.arguments)
                    await b.set("seen", key.resource_id, 1, key.tenant_id)

        await a.set("config", "x", "old", "acme")
        await a.invalidate("config", "x", "acme")

        async def warmed() -> bool:
            return await a.get("config", "x", "acme") == "warm" and await a.get("seen", "x", "acme") == 1

        await until(warmed)


async def test_one_that_fails_is_isolated_counted_and_logged_once_a_minute_by_its_name() -> None:
    clock = FakeClock()
    async with Fleet(1, clock=clock) as fleet:
        [a] = fleet.caches
        seen: list[int] = []

        def fails(event: LoadedEvent) -> None:
            raise ZeroDivisionError(event.key.resource_id)

        async def fails_too(event: LoadedEvent) -> None:
            raise asyncio.CancelledError

        a.on("loaded", fails)
        a.on("loaded", fails_too)
        a.on("loaded", lambda event: seen.append(int(event.key.resource_id)))
        with told("ERROR") as lines:
            await load(a, *range(10))
            await idle(a)
            assert seen == list(range(10))
            assert a.stats().hook_failures == 20
            assert len(lines) == 2
            assert "fails of 'loaded' has failed: ZeroDivisionError" in lines[0]
            assert "fails_too of 'loaded' has failed: it was cancelled from within" in lines[1]
            clock.advance(61)
            await fleet.probe()
            await load(a, 77)
            await until(lambda: seen[-1] == 77)
            assert len(lines) == 4


async def test_one_that_hangs_has_its_time_and_holds_up_neither_reads_nor_the_listener(redis_url: str) -> None:
    async with nodes(redis_url, 2, l2_timeout_s=10.0) as (a, b):
        seen: list[str] = []
        ends = asyncio.Event()

        async def stubborn(event: LoadedEvent) -> None:
            while not ends.is_set():
                try:
                    await ends.wait()
                except asyncio.CancelledError:
                    seen.append("cancelled")

        a.on("loaded", stubborn, timeout_s=0.2)
        a.on("loaded", lambda event: seen.append("next"))
        with told("ERROR") as lines:
            await load(a, 1)
            began_s = monotonic()
            await b.invalidate("config", 1, "acme")

            async def gone() -> bool:
                return await a.get("config", 1, "acme") is None

            await until(gone)
            assert monotonic() - began_s < 0.2
            await idle(a)
        assert seen == ["cancelled", "next"]
        assert a.stats().hook_failures == 1
        assert "took longer than 0.2 s, goes on after it was cancelled, and is left behind" in lines[0]
        ends.set()


async def test_what_waits_is_bounded_and_what_is_dropped_is_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.observe.hooks.QUEUE_MAX", 10)
    async with Fleet(1) as fleet:
        [a] = fleet.caches
        gate, seen = asyncio.Event(), list[str]()

        @a.on("loaded", timeout_s=30)
        async def slow(event: LoadedEvent) -> None:
            await gate.wait()
            seen.append(event.key.resource_id)

        with told("WARNING", of="hooks:") as lines:
            await load(a, 0)
            await until(lambda: not parts(a).node.hooks._queue)  # it is in hand
            await load(a, *range(1, 21))
            assert a.stats().hook_events_dropped == 10
            gate.set()
            await idle(a)
        assert seen == [str(number) for number in range(11)]
        assert len(lines) == 1 and "10 events were dropped" in lines[0]


async def test_an_invalidation_takes_as_much_room_as_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.observe.hooks.QUEUE_MAX", 10)
    async with Fleet(1) as fleet:
        [a] = fleet.caches
        gate = asyncio.Event()

        @a.on("invalidated", timeout_s=30)
        async def slow(event: InvalidatedEvent) -> None:
            await gate.wait()

        await a.invalidate("config", 0, "acme")
        await until(lambda: not parts(a).node.hooks._queue)
        for number in range(8):
            await a.invalidate("config", number, "acme")  # each itself, and its key
        assert len(parts(a).node.hooks._queue) == 5
        assert a.stats().hook_events_dropped == 3
        gate.set()
        await idle(a)
        assert parts(a).node.hooks._weight == 0


async def test_closing_tells_what_waits(redis_url: str) -> None:
    seen: list[str] = []
    async with nodes(redis_url, 1, l2_timeout_s=10.0) as (a,):

        @a.on("loaded")
        async def note(event: LoadedEvent) -> None:
            await asyncio.sleep(0)
            seen.append(event.key.resource_id)

        await load(a, *range(40))
    assert seen == [str(number) for number in range(40)]


async def test_closing_waits_for_a_callback_no_longer_than_its_time_and_drops_the_rest(redis_url: str) -> None:
    async with nodes(redis_url, 1, close_timeout_s=0.2) as (a,):
        counters = parts(a).node.counters

        @a.on("loaded", timeout_s=60)
        async def hangs(event: LoadedEvent) -> None:
            await asyncio.Event().wait()

        await load(a, *range(5))
        await until(lambda: len(parts(a).node.hooks._queue) == 4)
        began_s = monotonic()
        with told("WARNING", of="hooks:") as lines:
            await a.aclose()
        assert monotonic() - began_s < 3.0
    assert counters.hook_events_dropped == 4
    assert lines == ["hooks: 4 events were not told before the cache was closed"]


async def test_one_that_is_removed_is_told_nothing_more(redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=10.0) as (a,):
        seen: list[Any] = []
        gate = asyncio.Event()
        first = a.on("loaded", lambda _: gate.wait())
        with a.on("loaded", seen.append) as hook:
            await load(a, 1)
            hook.remove()
            await load(a, 2)
            gate.set()
            await idle(a)
        assert seen == []
        first.remove()
        assert a._hooks.loaded == ()
        with a.on("loaded", seen.append):
            await load(a, 3)
            await idle(a)
        await load(a, 4)
        await idle(a)
        assert [event.key.resource_id for event in seen] == ["3"]
        hook.remove()


async def test_a_decorator_leaves_the_function_what_it_is_and_subscriptions_outlive_closing(redis_url: str) -> None:
    cache, seen = Cache(quick(redis_url)), list[str]()

    @cache.on("loaded")
    def note(event: LoadedEvent) -> str:
        seen.append(event.key.resource_id)
        return "as it is"

    for one in ("1", "2"):
        async with cache:
            await load(cache, int(one))
        assert seen[-1] == one
    assert note(LoadedEvent(0.0, seen_key("9"), 0.0, True, "database", False, True)) == "as it is"


def seen_key(resource_id: str) -> Any:
    from cachebus import KeyIds

    return KeyIds("config", resource_id)


async def test_what_is_wrong_is_said_at_once() -> None:
    cache = Cache("memory://")
    wrong: Any = "load"
    with pytest.raises(ConfigError, match="there is no hook 'load': there are invalidated, loaded"):
        cache.on(wrong, print)
    with pytest.raises(ConfigError, match="not a int"):
        cache.on("loaded", 7)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="there is no hook"):
        cache.on(wrong)
    for timeout_s in (0, True, "1"):
        with pytest.raises(ValueError, match="timeout_s must be"):
            cache.on("loaded", print, timeout_s=timeout_s)  # type: ignore[call-overload]
