"""Very many ids in one call: they hold up nobody, and what is too much for one step of L2 is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cachebus import Cache, Cascade, L2Unavailable
from cachebus.reading.read import Reader
from cachebus.testing import Fleet
from tests.support.caches import parts


@asynccontextmanager
async def ticks() -> AsyncIterator[list[None]]:
    """One more each time that the event loop comes round."""
    seen: list[None] = []

    async def tick() -> None:
        while True:
            seen.append(None)
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    try:
        yield seen
    finally:
        ticking.cancel()


@asynccontextmanager
async def one() -> AsyncIterator[tuple[Fleet, Cache]]:
    async with Fleet(1) as fleet:
        yield fleet, fleet.caches[0]


async def test_targets_are_named_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async with one() as (_, cache), ticks() as seen:
        planned: list[int] = []
        invalidate, get_many = type(parts(cache).writer).invalidate, Reader.get_many

        async def noted(writer: Any, *args: Any, **kwargs: Any) -> Any:
            planned.append(len(seen) - before)
            return await invalidate(writer, *args, **kwargs)

        async def asked(reader: Any, *args: Any) -> Any:
            planned.append(len(seen) - before)
            return await get_many(reader, *args)

        monkeypatch.setattr(type(parts(cache).writer), "invalidate", noted)
        monkeypatch.setattr(Reader, "get_many", asked)
        before = len(seen)
        assert (await cache.invalidate_many("row", range(2500), "acme")).targets == {"row": 2500}
        assert planned.pop() >= 18, "by 250 as targets, then as keys"
        before = len(seen)
        await cache.get_targets([("row", number) for number in range(2500)], "acme")
        assert planned[0] >= 9


async def test_too_many_are_refused_before_anything_is_done() -> None:
    async with one() as (_, cache):
        await cache.set("row", 1, 1, "acme")
        cache.register(Cascade("wide", to=[("page", f"{n}:{{resource_id}}") for n in range(30)]))
        for call in (
            cache.invalidate_many("row", iter(range(10_001)), "acme"),
            cache.invalidate_many("row", range(5_001), "acme", contexts="all"),
            cache.invalidate_many("wide", range(501), "acme"),
            cache.invalidate_targets([("row", 1)] * 10_001, "acme"),
        ):
            with pytest.raises(ValueError, match=r"10,000 keys and scopes.*invalidate_scope"):
                await call
        assert await cache.get("row", 1, "acme") == 1
        assert (await cache.invalidate_many("wide", range(500), "acme")).targets == {"wide": 500, "page": 15_000}
        assert (await cache.invalidate_many("row", range(10_000), "acme")).targets == {"row": 10_000}
        assert await cache.get("row", 1, "acme") is None


async def test_set_many_ends_with_those_that_were_sent_with_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An L2 that is away would be waited for again and again."""
    async with one() as (_, cache):
        store: Any = parts(cache).store
        write, tried = store.write, 0

        def some(*args: Any, **kwargs: Any) -> Any:
            nonlocal tried
            tried += 1
            if tried == 300:
                raise L2Unavailable("gone")
            return write(*args, **kwargs)

        monkeypatch.setattr(store, "write", some)
        with pytest.raises(L2Unavailable, match="gone"):
            await cache.set_many("row", dict.fromkeys(range(1000), "new"), "acme")
        assert tried == 500
        found = await cache.get_many("row", range(1000), "acme")
        assert len(found) == 499
        assert set(range(250)) < set(found)
