"""A workload that lives through a fault over real servers: reads and writes all the while, held against D."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from cachebus import Cache
from cachebus.base.clock import monotonic
from tests.support.caches import D_S, past, until
from tests.support.history import JudgedWorkload, Mix

Fault = Callable[[], Coroutine[Any, Any, None]]
PAUSE_S = 0.002


async def live_through(caches: list[Cache], fault: Fault, seed: int = 1) -> JudgedWorkload:
    """Reads and writes on all nodes before, during and after the fault; whatever they saw is held against D."""
    workload = JudgedWorkload(monotonic, D_S, Mix(random.Random(seed)))
    over = asyncio.Event()

    async def go_on(step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while not over.is_set():
            await step()
            await asyncio.sleep(PAUSE_S)

    lives = [go_on(lambda cache=cache, i=i: workload.read(cache, f"node {i}")) for i, cache in enumerate(caches)]  # type: ignore[misc]
    lives += [go_on(lambda: workload.write(workload.dice.choice(caches))) for _ in range(2)]
    tasks = [asyncio.create_task(life) for life in lives]
    try:
        await past(monotonic() + D_S)
        await fault()
        await until(lambda: all(cache.ready() for cache in caches))
        await past(monotonic() + 2 * D_S)
    finally:
        over.set()
        await asyncio.gather(*tasks)
    assert workload.broken == []
    assert workload.reads > 100
    assert workload.writes > 5
    return workload
