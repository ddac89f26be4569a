"""Many callers of one key whose tags only the source knows, while L2 keeps nothing of it: they share loads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cachebus import Cache, Fresh
from cachebus.reading.read import Reader
from tests.support.caches import Source, heard, nodes, parts, quick, until

CALM: dict[str, Any] = {"staleness_bound_s": 30.0, "l2_timeout_s": 10.0}
CALLERS = 1200
"""More than Python nests calls."""


class Tagged(Source):
    """A source that gives its values a tag."""

    loads = 0

    async def load(self, resource_id: str) -> Any:
        self.loads += 1
        return Fresh(await super().load(resource_id), tags=["t"])


def herd(cache: Cache, source: Source, callers: int, **more: Any) -> list[asyncio.Task[Any]]:
    return [
        asyncio.create_task(cache.get_or_load("page", "x", source.load, tenant_id="acme", **more))
        for _ in range(callers)
    ]


async def guarded(cache: Cache) -> None:
    """A guard stands on the tag."""
    await heard([cache], await parts(cache).writer.guard(parts(cache).planner.tags("acme", ["t"]), "k" * 16, 30_000))


@pytest.mark.parametrize("refresh", [False, True])
async def test_callers_that_came_before_the_source_was_asked_share_the_load(redis_url: str, refresh: bool) -> None:
    async with Cache(quick(redis_url, **CALM)) as cache:
        source = Tagged(x=1)
        await guarded(cache)
        assert await asyncio.gather(*herd(cache, source, CALLERS, refresh=refresh)) == [1] * CALLERS
        assert source.loads == 1
        assert not (await cache.look("page", "x", "acme")).found


async def test_callers_that_came_when_it_had_been_asked_share_the_next_load(redis_url: str) -> None:
    """1. A load reads "old", and many join it. Then the source has "new".
    2. L2 does not keep "old": those who joined load again, once, and have "new"."""
    async with Cache(quick(redis_url, **CALM)) as cache:
        source = Tagged(x="old")
        await guarded(cache)
        source.hold()
        first = herd(cache, source, 1)
        await source.asked.wait()
        source.values["x"] = "new"
        later = herd(cache, source, CALLERS)
        await asyncio.sleep(0)
        assert cache.stats().flights == 1, "they have joined"
        source.release()
        assert await asyncio.gather(*first, *later) == ["old", *["new"] * CALLERS]
        assert source.loads == 2


async def test_who_was_refused_one_load_is_not_refused_another(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. B and C join A's load, and are refused what it gives. B begins the next load. C searches meanwhile.
    2. When C has searched, the source of B's load has been asked. C does not share that, but begins its own."""
    async with Cache(quick(redis_url, **CALM)) as cache:
        source, searched, search = Tagged(x="old"), asyncio.Event(), Reader.search
        await guarded(cache)
        ids: dict[str, Any] = {"agent_id": "m"}
        source.hold()
        tasks = herd(cache, source, 1, **ids)
        await source.asked.wait()
        tasks += herd(cache, source, 1, **ids)
        tasks += herd(cache, source, 1, **ids, search_hierarchy=True)
        flight = parts(cache).loads.flights.find(parts(cache).naming.key("page", "x", "acme", "m").l1)
        await until(lambda: flight is not None and flight._callers == 3)

        async def slow(*args: Any, **kwargs: Any) -> Any:
            await searched.wait()
            return await search(*args, **kwargs)

        monkeypatch.setattr(Reader, "search", slow)
        source.release()
        source.hold()
        await source.asked.wait()
        source.values["x"] = "new"
        searched.set()
        await until(lambda: cache.stats().flights == 2)
        source.release()
        assert await asyncio.gather(*tasks) == ["old", "old", "new"]


async def test_a_node_without_keys_gives_many_what_its_memory_has_got(redis_url: str) -> None:
    """What lies in L2 is encrypted, so this node keeps its loads to itself."""
    async with (
        nodes(redis_url, 1, encryption=lambda: {"a": b"k" * 32}, **CALM) as (owner,),
        Cache(quick(redis_url, **CALM)) as cache,
    ):
        await owner.set("page", "x", "secret", "acme")
        source = Tagged(x=1)
        source.hold()
        first = herd(cache, source, 1)
        await source.asked.wait()
        later = herd(cache, source, 100)
        await asyncio.sleep(0)
        assert cache.stats().flights == 1, "they have joined"
        source.release()
        assert await asyncio.gather(*first, *later) == [1] * 101
        assert source.loads == 1
