"""A town that lives through some trouble over real servers: reads and writes all the while, held against D."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from cachebus import Cache
from cachebus.base.clock import monotonic
from tests.support.caches import D_S, past, until
from tests.support.history import Moods, Town

Trouble = Callable[[], Coroutine[Any, Any, None]]
PAUSE_S = 0.002


async def live_through(caches: list[Cache], trouble: Trouble, seed: int = 1) -> Town:
    """Reads and writes on all nodes before, during and after the trouble; whatever they saw is held against D."""
    town = Town(monotonic, D_S, Moods(random.Random(seed)))
    over = asyncio.Event()

    async def go_on(step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while not over.is_set():
            await step()
            await asyncio.sleep(PAUSE_S)

    lives = [go_on(lambda cache=cache, i=i: town.read(cache, f"node {i}")) for i, cache in enumerate(caches)]  # type: ignore[misc]
    lives += [go_on(lambda: town.write(town.dice.choice(caches))) for _ in range(2)]
    tasks = [asyncio.create_task(life) for life in lives]
    try:
        await past(monotonic() + D_S)
        await trouble()
        await until(lambda: all(cache.ready() for cache in caches))
        await past(monotonic() + 2 * D_S)
    finally:
        over.set()
        await asyncio.gather(*tasks)
    assert town.broken == []
    assert town.reads > 100
    assert town.writes > 5
    return town
