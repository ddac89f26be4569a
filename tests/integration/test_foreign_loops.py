"""Calls from another event loop than the one that opened a cache: each raises, whether memory has the answer or not."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from cachebus import (
    Cache,
    CacheManager,
    ConfigError,
    Context,
    Target,
    cached,
    get_with_cache_aside,
    invalidate_coordinated,
    lifespan,
)
from cachebus.producers import DirectProducer
from tests.support.caches import quick

HERE = ("config", "x")
Call = Callable[[Any], Awaitable[Any]]


def load() -> int:
    """A loader."""
    return 1


async def guarded(cache: Any, guard: Any = None) -> None:
    """A block under a guard."""
    async with guard or cache.write_guard([HERE], "acme", db_timeout_s=5):
        pass


@cached("config", resource_id="{name}", tenant_id="acme")
async def config(name: str) -> int:
    """A function of the process-wide cache."""
    return 1


OF_CACHE: dict[str, Call] = {
    "get": lambda cache: cache.get(*HERE, "acme"),
    "get_many": lambda cache: cache.get_many("config", ["x"], "acme"),
    "get_or_load": lambda cache: cache.get_or_load(*HERE, load, "acme"),
    "set": lambda cache: cache.set(*HERE, 1, "acme"),
    "add": lambda cache: cache.add(*HERE, 1, None, "acme"),
    "delete": lambda cache: cache.delete(*HERE, "acme"),
    "invalidate": lambda cache: cache.invalidate(*HERE, "acme", wait="nodes"),
    "invalidate_targets": lambda cache: cache.invalidate_targets([Target(*HERE)], "acme"),
    "invalidate_scope": lambda cache: cache.invalidate_scope("acme"),
    "invalidate_tags": lambda cache: cache.invalidate_tags(["t"], "acme"),
    "invalidate_type": lambda cache: cache.invalidate_type("config"),
    "clear": lambda cache: cache.clear(),
    "increment": lambda cache: cache.increment("calls", "acme"),
    "probe": lambda cache: cache.probe(),
    "explain": lambda cache: cache.explain(*HERE, "acme"),
    "drain": lambda cache: cache.drain(1.0),
    "warmed": lambda cache: cache.warmed(1.0),
    "aclose": lambda cache: cache.aclose(),
}
SHARED = ("get", "get_many", "get_or_load", "set", "delete", "invalidate", "invalidate_scope", "invalidate_tags")
OF_MANAGER: dict[str, Call] = {
    **{name: partial(lambda call, _: call(CacheManager), OF_CACHE[name]) for name in SHARED},
    "set_if_not_exists": lambda _: CacheManager.set_if_not_exists(*HERE, 1, None, "acme"),
    "write_guard": lambda _: guarded(CacheManager),
    "cached": lambda _: config("x"),
    "cached.get": lambda _: config.get("x"),
    "cached.invalidate": lambda _: config.invalidate("x"),
    "cached.refresh": lambda _: config.refresh("x"),
    "aside": lambda _: get_with_cache_aside(*HERE, "acme", load),
    "aside in a context": lambda _: get_with_cache_aside(*HERE, None, load, ctx=Context(tenant_id="acme")),
    "coordinated": lambda _: invalidate_coordinated("acme", *HERE, [{"data_type": "query"}]),
}


def in_a_thread(call: Callable[[], Awaitable[Any]]) -> None:
    """By a loop of another thread."""

    async def run() -> Any:
        return await call()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, run()).result()


def in_another_loop(call: Callable[[], Awaitable[Any]]) -> None:
    """By another loop of this thread; the first one rests meanwhile."""

    async def run() -> Any:
        return await call()

    asyncio.run(run())


ELSEWHERE = pytest.mark.parametrize("elsewhere", [in_a_thread, in_another_loop])
WARM = pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])


@contextmanager
def opened(what: Any) -> Iterator[tuple[asyncio.AbstractEventLoop, Any]]:
    """It, and the loop in which it is open."""
    loop = asyncio.new_event_loop()
    try:
        found = loop.run_until_complete(what.__aenter__())
        try:
            yield loop, found
        finally:
            loop.run_until_complete(what.__aexit__(None, None, None))
    finally:
        loop.close()


def refused(elsewhere: Callable[[Callable[[], Awaitable[Any]]], None], call: Callable[[], Awaitable[Any]]) -> None:
    """The call raises there what it has to."""
    with pytest.raises(ConfigError, match=r"belongs to another event loop.*run_coroutine_threadsafe"):
        elsewhere(call)


def test_no_verb_is_forgotten() -> None:
    of_cache = {name for name, what in inspect.getmembers(Cache, inspect.iscoroutinefunction) if name[0] != "_"}
    assert of_cache == set(OF_CACHE)


@ELSEWHERE
@WARM
@pytest.mark.parametrize("verb", OF_CACHE)
def test_a_verb_of_a_cache(verb: str, elsewhere: Any, is_warm: bool) -> None:
    with opened(Cache(quick("memory://"))) as (loop, cache):
        if is_warm:
            loop.run_until_complete(cache.get_or_load(*HERE, load, "acme"))
        refused(elsewhere, lambda: OF_CACHE[verb](cache))
        assert loop.run_until_complete(cache.get(*HERE, "acme")) == (1 if is_warm else None)


@ELSEWHERE
@WARM
@pytest.mark.parametrize("verb", OF_MANAGER)
def test_a_verb_of_the_process(verb: str, elsewhere: Any, is_warm: bool) -> None:
    with opened(lifespan(quick("memory://"))) as (loop, cache):
        if is_warm:
            loop.run_until_complete(cache.get_or_load(*HERE, load, "acme"))
        refused(elsewhere, lambda: OF_MANAGER[verb](cache))
        assert loop.run_until_complete(cache.get(*HERE, "acme")) == (1 if is_warm else None)


@ELSEWHERE
def test_a_guard_that_was_made_at_home(elsewhere: Any) -> None:
    with opened(Cache(quick("memory://"))) as (loop, cache):

        async def made() -> Any:
            return cache.write_guard([HERE], "acme", db_timeout_s=5)

        guard = loop.run_until_complete(made())
        refused(elsewhere, lambda: guarded(cache, guard))
        loop.run_until_complete(guarded(cache, guard))
        refused(elsewhere, lambda: guarded(cache))


@ELSEWHERE
@WARM
@pytest.mark.parametrize("verb", ["invalidate", "invalidate_scope", "invalidate_tags", "invalidate_type", "clear"])
def test_a_verb_of_a_producer(redis_url: str, verb: str, elsewhere: Any, is_warm: bool) -> None:
    with opened(DirectProducer(quick(redis_url))) as (loop, producer):
        if is_warm:
            loop.run_until_complete(OF_CACHE[verb](producer))
        refused(elsewhere, lambda: OF_CACHE[verb](producer))


async def test_hits_are_counted_one_by_one() -> None:
    async with Cache(quick("memory://")) as cache:
        await cache.get_or_load(*HERE, load, "acme")
        before = cache.stats().types["config"].l1_hits
        for _ in range(1000):
            await cache.get(*HERE, "acme")
        hits = cache.stats().types["config"].l1_hits
        assert hits == before + 1000
        assert type(hits) is int
