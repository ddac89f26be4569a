"""What encryption costs: a read of Redis and a write, beside the same without it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from cachebus import Cache, Settings
from tests.bench.rounds import IDS, Contender, Run, race
from tests.bench.rows import Row
from tests.bench.run import Bench

KEY: Final = "k:" + base64.b64encode(bytes(range(32))).decode()
VALUE: Final = {"text": "x" * 1000}
CALLS: Final = 200
PLAIN: Final = "without"


async def rows(bench: Bench) -> list[Row]:
    """A row for reads and one for writes: how much longer they take."""
    async with AsyncExitStack() as stack:
        caches: dict[str, Cache] = {}
        for name, key in ((PLAIN, None), ("encrypted", KEY)):
            settings = Settings(url=bench.server.url, namespace=f"bench-{name}", encryption=key)
            caches[name] = cache = await stack.enter_async_context(Cache.open(settings))
            for one in IDS:
                await cache.set("agent_config", one, VALUE, "acme")
        found = []
        for what, runs in (("read", _reading), ("write", _writing)):
            contenders = [Contender(name, runs(cache), calls=CALLS) for name, cache in caches.items()]
            took_s = await race(
                contenders, bench.scale.io_rounds, between=lambda: asyncio.sleep(0), progress=bench.progress
            )
            plain_us, ours_us = took_s[PLAIN] * 1e6, took_s["encrypted"] * 1e6
            found.append(
                Row(
                    f"encryption.{what}",
                    f"an encrypted {what} of 1 kB: share of the time without encryption",
                    ours_us / plain_us,
                    "x",
                    detail=f"{ours_us:.0f} us, {plain_us:.0f} without",
                )
            )
        return found


def _reading(cache: Cache) -> Run:
    async def run(ids: Sequence[str]) -> None:
        for one in ids:
            assert await cache.get("agent_config", one, "acme", use_memory=False) is not None

    return run


def _writing(cache: Cache) -> Run:
    async def run(ids: Sequence[str]) -> None:
        for one in ids:
            await cache.set("agent_config", one, VALUE, "acme")

    return run
