"""Nodes that come and go all the time and take over what is hot, while others write and connections break."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from secrets import token_hex
from typing import Any

import pytest

from cachebus import Cache, CacheBusError
from cachebus.base.clock import monotonic
from cachebus.listening import warm_up
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, deaf, nodes, quick, until
from tests.support.history import JudgedWorkload, Mix, replay_of, seeds

FILE = "tests/chaos/test_warm_up.py"
LIFE_S = 3.0
SETUP: dict[str, Any] = {"warm_up": True, "lease_ms": 300, "max_invalidated_scopes": 16}


class Churn:
    """One place of the fleet, in which one node follows the other; each is read from as soon as it is there."""

    def __init__(self, url: str, workload: JudgedWorkload, until_s: float) -> None:
        self._url = url
        self._workload = workload
        self._until_s = until_s
        self.warmed = self.lives = 0

    async def go_on(self) -> None:
        """One life after the other until the time comes."""
        while monotonic() < self._until_s:
            try:
                async with Cache(quick(self._url, start_degraded=True, **SETUP)) as cache:
                    end_s = min(self._until_s, monotonic() + self._workload.dice.uniform(0.1, 1.2))
                    await asyncio.gather(*(self._workload.read_on(cache, "a new node", end_s, 0.01) for _ in range(2)))
                    self.warmed += cache.stats().warmed
                    self.lives += 1
            except CacheBusError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["redis", "memory"])
@pytest.mark.parametrize("seed", seeds(3))
async def test_whatever_is_written_while_nodes_warm_up_no_read_is_older_than_promised(
    own_server: EmbeddedServer, seed: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("JITTER_S", 0.02), ("BATCH_KEYS", 3), ("PAUSE_S", 0.01)):  # so that much falls in between
        monkeypatch.setattr(warm_up, name, value)
    dice, url = random.Random(seed), own_server.url if kind == "redis" else f"memory://churn-{token_hex(4)}"
    async with nodes(url, 2, **SETUP) as caches, AsyncExitStack() as stack:
        await asyncio.gather(*(cache.warmed() for cache in caches))
        mix = Mix(dice)
        mix.keys, mix.slow_s, mix.very_slow = 40, 0.002, 0.0
        mix.write_pause_s = dice.choice((0.005, 0.03, 0.1))
        workload = JudgedWorkload(monotonic, D_S, mix)
        for verb in ("scope", "tenant"):
            mix._weights[verb] = 0.02  # else nothing is ever hot
        until_s = monotonic() + LIFE_S
        places = [Churn(url, workload, until_s) for _ in range(2)]

        async def fault() -> None:
            while monotonic() < until_s:
                await asyncio.sleep(dice.uniform(0, 0.4))
                what = dice.choice(("normal", "pubsub", "deaf", "flush") if kind == "redis" else ("deaf",))
                if what == "deaf":
                    with deaf(dice.choice(caches)):
                        await asyncio.sleep(dice.uniform(0, 2 * D_S))
                elif what == "flush":
                    await asyncio.to_thread(own_server.command, "FLUSHALL")
                else:
                    await asyncio.to_thread(own_server.command, "CLIENT", "KILL", "TYPE", what)

        lives = [workload.read_on(cache, f"node {i}", until_s, 0.005) for i, cache in enumerate(caches)]
        lives += [workload.write_on(caches, until_s) for _ in range(2)]
        await asyncio.gather(*lives, *(place.go_on() for place in places), fault())
        await until(lambda: all(cache.ready() and cache.stats().l2_connected for cache in caches))
        caches.append(await stack.enter_async_context(Cache(quick(url, **SETUP))))
        assert await caches[-1].warmed(15)
        await workload.rest(caches)
        workload.verdict(replay_of(FILE, seed))
        assert sum(place.lives for place in places) > 2
        assert sum(place.warmed for place in places) > 0
