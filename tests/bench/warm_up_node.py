"""One node of a fleet that is restarted: it loads, and reads keys by Zipf's law, as it is asked by lines of JSON."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from itertools import accumulate
from typing import Any, Final

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic, perf_counter

PACE_S: Final = 0.002
"""Between the reads of one node, but for those by which it becomes warm."""
VALUE: Final = {"name": "a product", "text": "x" * 300, "price": 7}


class WarmUpNode:
    """Reads, and counts what it cost."""

    def __init__(self, cache: Cache, keys: int) -> None:
        self._cache = cache
        self._names = list(range(keys))
        random.Random(1).shuffle(self._names)
        self._weights = [*accumulate(1 / rank for rank in range(1, keys + 1))]
        self._loads = 0

    async def load(self) -> Any:
        """Ask the source."""
        self._loads += 1
        await asyncio.sleep(0.001)
        return VALUE

    async def read(self, count: int, pace_s: float) -> dict[str, Any]:
        """So many reads, one after the other."""
        before, loads, took_s = self._cache.stats(), self._loads, list[float]()
        for name in random.choices(self._names, cum_weights=self._weights, k=count):
            began_s = perf_counter()
            await self._cache.get_or_load("product", name, self.load, tenant_id="acme")
            took_s.append(perf_counter() - began_s)
            if pace_s or len(took_s) % 100 == 0:
                await asyncio.sleep(pace_s)
        after = self._cache.stats()
        return {
            "l1": after.l1_hits - before.l1_hits,
            "l2": after.l2_hits - before.l2_hits,
            "loads": self._loads - loads,
            "took_s": took_s,
        }


async def main(url: str, keys: int, way: str) -> None:
    """Serve until the input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    began_s = monotonic()
    async with Cache.open(Settings(url=url, warm_up=way != "cold")) as cache:
        if way == "waited for":
            await cache.warmed()
        node = WarmUpNode(cache, keys)
        print(json.dumps({"ready_s": monotonic() - began_s}), flush=True)
        while line := await reader.readline():
            asked = json.loads(line)
            found = await node.read(asked["count"], PACE_S if asked["paced"] else 0.0)
            print(json.dumps({**found, "warmed": cache.stats().warmed}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
