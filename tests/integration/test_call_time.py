"""However many steps of a call a server lets wait, the call waits no longer than for one that is silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cachebus import Cache, L2Unavailable
from cachebus.budget import AT_ONCE
from cachebus.errors import InvalidationFailed
from cachebus.resp import mapped
from cachebus.testing import Fleet
from tests.support.caches import PATIENCE_S, Source, parts

TIMEOUT_S = 0.1
WHERE = {"tenant_id": "acme"}


def slow(answer: Any) -> Callable[..., Any]:
    """A step that has an answer, but late."""

    async def step(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(2 * AT_ONCE * TIMEOUT_S)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return step


async def never(*_: Any, **__: Any) -> Any:
    """A step that has none."""
    await asyncio.Event().wait()


async def load(cache: Cache) -> Any:
    """A read that may load."""
    return await cache.get_or_load("config", "x", Source(x=1).load, **WHERE)


async def load_around(cache: Cache) -> Any:
    """The same, after a search."""
    return await cache.get_or_load("config", "x", Source(x=1).load, **WHERE, agent_id="a", search_hierarchy=True)


async def get(cache: Cache) -> Any:
    """A read."""
    return await cache.get("config", "x", **WHERE)


@pytest.mark.parametrize(("ask", "first", "then"), [
    (load, {"get": None}, "lease"), (load_around, {"get": None}, "lease"), (load, {"get": None, "lease": ...}, "fill"),
    (get, {"get": mapped("WRONGTYPE of another's")}, "read"),
])  # fmt: skip
async def test_a_read(ask: Callable[[Cache], Awaitable[Any]], first: dict[str, Any], then: str) -> None:
    async with Fleet(1, l2_timeout_s=TIMEOUT_S) as fleet:
        (cache,) = fleet.caches
        store: Any = parts(cache).store
        for name, answer in first.items():
            if answer is ...:
                real = getattr(store, name)

                async def late(*args: Any, real: Any = real, **how: Any) -> Any:
                    await asyncio.sleep(2 * AT_ONCE * TIMEOUT_S)
                    return await real(*args, **how)

                setattr(store, name, late)
            else:
                setattr(store, name, slow(answer))
        setattr(store, then, never)
        async with asyncio.timeout(PATIENCE_S):
            try:
                assert await ask(cache) == 1
            except L2Unavailable:
                assert ask is get


async def test_a_write_that_has_waited_for_earlier_ones() -> None:
    async with Fleet(1, l2_timeout_s=TIMEOUT_S) as fleet:
        (cache,) = fleet.caches
        of = parts(cache)
        of.writer.pending.make_way = slow(None)  # type: ignore[method-assign]
        store: Any = of.store
        store.write = store.guard = never
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(L2Unavailable):
                await cache.set("config", "x", 1, **WHERE)
            with pytest.raises(InvalidationFailed):
                async with cache.write_guard([("config", "x")], "acme", db_timeout_s=1):
                    raise AssertionError("it does not stand")
