"""Closing a cache: where it may be done, how long it takes whatever a loader does, and what passes through it."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from cachebus import Cache, CacheManager, ConfigError, L2Unavailable, get_with_cache_aside, lifespan
from cachebus.assembly.factory import Parts
from cachebus.base.clock import monotonic
from cachebus.producers import DirectProducer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import Source, nodes, parts, quick, until

WHERE = {"tenant_id": "acme"}
IN_TIME_S = 5.0
Opened = Cache | DirectProducer
OPEN: dict[str, Callable[[str], Opened]] = {
    "cache": lambda url: Cache(quick(url)),
    "producer": lambda url: DirectProducer(quick(url)),
}


async def _closed(opened: Opened) -> None:
    async with asyncio.timeout(IN_TIME_S):
        await opened.aclose()


@contextmanager
def background_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread of its own, as where a sync framework calls an async library."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("name", OPEN)
def test_closing_in_another_thread_says_where_it_is_to_be_done(redis_url: str, name: str) -> None:
    opened = OPEN[name](redis_url)
    with background_loop() as loop:
        asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result(IN_TIME_S)
        with pytest.raises(ConfigError, match=rf"another event loop: .*run_coroutine_threadsafe\({name}.aclose\(\)"):
            asyncio.run(_closed(opened))
        asyncio.run_coroutine_threadsafe(opened.aclose(), loop).result(IN_TIME_S)  # nothing was spoilt
        asyncio.run(_closed(opened))  # and once more is harmless, anywhere


@pytest.mark.parametrize("name", OPEN)
def test_closing_in_another_loop_of_the_same_thread_says_so(redis_url: str, name: str) -> None:
    opened = OPEN[name](redis_url)
    with asyncio.Runner() as one, asyncio.Runner() as two:
        one.run(_entered(opened))
        with pytest.raises(ConfigError, match="another event loop"):
            two.run(_closed(opened))
        one.run(_closed(opened))


@pytest.mark.parametrize("name", OPEN)
def test_closing_after_the_loop_has_ended_says_so_and_it_can_be_opened_again(redis_url: str, name: str) -> None:
    opened = OPEN[name](redis_url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sockets and coroutines that nobody can end any more
        asyncio.run(_entered(opened))
        assert not (isinstance(opened, Cache) and opened.ready()), "though its leases may live"
        with pytest.raises(ConfigError, match=r"has ended.*open and close within one loop"):
            asyncio.run(_closed(opened))
        gc.collect()

    async def again() -> None:
        async with opened:
            await opened.invalidate("config", "x", **WHERE)

    asyncio.run(again())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads
async def test_closing_in_a_forked_child_says_so_and_the_parent_goes_on(redis_url: str) -> None:
    async with Cache(quick(redis_url)) as cache:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                cache.aclose().send(None)
            except ConfigError as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as said:
            assert "forked" in said.read()
        await asyncio.to_thread(os.waitpid, pid, 0)
        await cache.set("config", "x", 1, **WHERE)
        assert await cache.get("config", "x", **WHERE, use_memory=False) == 1


async def _entered(opened: Opened) -> None:
    await opened.__aenter__()


class Stubborn:
    """A loader that goes on although it is cancelled, until it is released."""

    def __init__(self) -> None:
        self.asked, self.cancelled, self.release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def load(self) -> int:
        self.asked.set()
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
        return 1


@asynccontextmanager
async def loading(cache: Cache) -> AsyncIterator[Stubborn]:
    """The cache has such a load under way, and in the end nothing is left of it."""
    before, stubborn = asyncio.all_tasks(), Stubborn()
    call = asyncio.create_task(cache.get_or_load("config", "x", stubborn.load, **WHERE))
    await stubborn.asked.wait()
    try:
        yield stubborn
    finally:
        stubborn.release.set()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: asyncio.all_tasks() <= before)


async def test_a_loader_that_swallows_its_cancellation_is_left_behind(redis_server: EmbeddedServer) -> None:
    cache = Cache(quick(redis_server.url, close_timeout_s=0.1))
    await cache.__aenter__()
    async with loading(cache) as stubborn:
        await _closed(cache)
        assert stubborn.cancelled.is_set()
        assert not stubborn.release.is_set()
        with pytest.raises(ConfigError, match="not open"):
            await cache.get("config", "x", **WHERE)


async def test_a_second_close_meanwhile_is_harmless(redis_url: str) -> None:
    cache = Cache(quick(redis_url, close_timeout_s=0.1))
    await cache.__aenter__()
    async with loading(cache) as stubborn:
        closing = asyncio.create_task(cache.aclose())
        await stubborn.cancelled.wait()
        await _closed(cache)
        await closing


async def test_closing_that_is_cancelled_ends_at_once_and_says_so(redis_url: str) -> None:
    cache = Cache(quick(redis_url, close_timeout_s=60))
    await cache.__aenter__()
    store = parts(cache).store
    async with loading(cache):
        closing = asyncio.create_task(cache.aclose())
        await asyncio.sleep(0.01)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(closing, IN_TIME_S)
        assert not store.connected


async def test_what_the_block_raises_passes_whatever_closing_meets(redis_url: str) -> None:
    async def fail() -> None:
        raise OSError("no goodbye")

    async def block(raised: BaseException | None) -> None:
        async with Cache(quick(redis_url)) as cache:
            await cache.set("config", "x", 1, **WHERE)
            opened.append(parts(cache))
            parts(cache).bus.close = _then(fail, parts(cache).bus.close)  # type: ignore[method-assign]
            if raised is not None:
                raise raised

    opened: list[Parts] = []
    for raised in (ValueError("mine"), KeyboardInterrupt(), asyncio.CancelledError()):
        with pytest.raises(type(raised)) as caught:
            await block(raised)
        assert caught.value is raised
    with pytest.raises(OSError, match="no goodbye"):
        await block(None)
    # ... and what comes after it was closed nevertheless.
    assert not any(of.store.connected or len(of.node.l1) for of in opened)


def _then(fail: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def both() -> None:
        await close()
        await fail()

    return both


async def test_taking_leave_waits_no_longer_for_a_server_that_has_much_else_to_say(own_server: EmbeddedServer) -> None:
    """Bytes go on coming, so the connection lives; the answer to our last question is behind them all."""
    async with Cache(quick(own_server.url, l2_timeout_s=0.2)) as cache:
        connection = parts(cache).store._links.of(0)  # type: ignore[attr-defined]
        own_server.pause()
        heartbeat = asyncio.create_task(_pretend_bytes(connection))
        closing_s = monotonic()
    heartbeat.cancel()
    assert monotonic() - closing_s < IN_TIME_S
    own_server.resume()


async def _pretend_bytes(connection: object) -> None:
    while True:
        connection.last_reply_s = monotonic()  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)


async def test_callers_of_loads_that_closing_ends_hear_that_it_was_closed(redis_url: str) -> None:
    cache = Cache(quick(redis_url, close_timeout_s=0.05))
    await cache.__aenter__()
    never = asyncio.Event()

    async def load() -> int:
        asked.set()
        await never.wait()
        return 1

    asked = asyncio.Event()
    calls = [asyncio.create_task(cache.get_or_load("config", "x", load, **WHERE)) for _ in range(3)]
    await asked.wait()
    await _closed(cache)
    for call in calls:
        with pytest.raises(L2Unavailable, match="closed"):
            await call


async def test_a_load_that_is_under_way_may_use_the_cache_until_closing_is_over(redis_url: str) -> None:
    cache = Cache(quick(redis_url, close_timeout_s=IN_TIME_S))
    async with cache:
        asked, goes_on = asyncio.Event(), asyncio.Event()

        async def inner() -> int:
            return 1

        async def outer() -> int:
            asked.set()
            await goes_on.wait()
            return 1 + int(await cache.get_or_load("config", "inner", inner, **WHERE))

        reader = asyncio.create_task(cache.get_or_load("config", "outer", outer, **WHERE))
        await asked.wait()
        closing = asyncio.create_task(cache.aclose())
        await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="not open"):
            await cache.get("config", "outer", **WHERE)  # it is for nobody else
        goes_on.set()
        await closing
        assert await reader == 2


async def test_a_load_that_is_under_way_may_use_the_process_wide_cache_until_closing_is_over(redis_url: str) -> None:
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def inner() -> int:
        return 1

    async def outer() -> int:
        asked.set()
        await goes_on.wait()
        found, _ = await get_with_cache_aside("config", "inner", "acme", inner)
        return int(found) + int(await CacheManager.get("config", "inner", "acme"))

    async def close(opened: AbstractAsyncContextManager[Cache]) -> None:
        await opened.__aexit__(None, None, None)

    opened = lifespan(quick(redis_url, close_timeout_s=IN_TIME_S))
    await opened.__aenter__()
    reader = asyncio.create_task(get_with_cache_aside("config", "outer", "acme", outer))
    await asked.wait()
    closing = asyncio.create_task(close(opened))
    await asyncio.sleep(0)
    for outside in (CacheManager.get("config", "x", "acme"), get_with_cache_aside("config", "x", "acme", inner)):
        with pytest.raises(ConfigError, match="not open"):
            await outside
    goes_on.set()
    await closing
    assert (await reader)[0] == 2
    with pytest.raises(ConfigError, match="lifespan"):
        await CacheManager.get("config", "x", "acme")


@pytest.mark.parametrize("during", [True, False], ids=["while loads land", "behind it"])
async def test_who_was_looking_for_a_value_begins_no_load_once_closing_has_begun(redis_url: str, during: bool) -> None:
    """Nothing would wait for it. `during`: another load is under way, and is waited for."""
    calls = 0
    asked, lands = asyncio.Event(), asyncio.Event()

    async def slow() -> int:
        asked.set()
        await lands.wait()
        return 2

    async def load() -> int:
        nonlocal calls
        calls += 1
        return 1

    async with Cache(quick(redis_url, close_timeout_s=IN_TIME_S if during else 0.05)) as cache:
        reader, looks, goes_on = parts(cache).reader, asyncio.Event(), asyncio.Event()
        search = reader.search

        async def slowly(*arguments: Any, **more: Any) -> Any:
            looks.set()
            await goes_on.wait()
            return await search(*arguments, **more)

        with patch.object(reader, "search", slowly):
            caller = asyncio.create_task(
                cache.get_or_load("config", "x", load, **WHERE, agent_id="a", search_hierarchy=True)
            )
            await looks.wait()
            if during:
                other = asyncio.create_task(cache.get_or_load("config", "slow", slow, **WHERE))
                await asked.wait()
            closing = asyncio.create_task(cache.aclose())
            await (asyncio.sleep(0) if during else closing)
            goes_on.set()
            with pytest.raises(L2Unavailable, match="closed"):
                await caller
            lands.set()
            await closing
        assert not during or await other == 2
    assert calls == 0


async def test_a_task_that_took_back_a_cancellation_once_is_told_that_the_cache_is_closed(redis_url: str) -> None:
    source = Source(x=1)
    source.hold()
    async with nodes(redis_url, 1, close_timeout_s=0.05) as (a,):

        async def caller() -> Any:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return await a.get_or_load("config", "x", source.load, tenant_id="acme")

        task = asyncio.create_task(caller())
        await asyncio.sleep(0)
        task.cancel()
        await source.asked.wait()
        await a.aclose()
        with pytest.raises(L2Unavailable, match="closed"):
            await task


async def test_a_server_that_hangs_makes_closing_no_longer_than_it_may_take(own_server: EmbeddedServer) -> None:
    cache = await Cache(quick(own_server.url, l2_timeout_s=60.0, close_timeout_s=0.1)).__aenter__()
    own_server.pause()
    try:
        await _closed(cache)
    finally:
        own_server.resume()
