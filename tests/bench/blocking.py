"""Synchronous code: a hit on the calling thread in units of an async look into a dict, and what a way over to the event
loop and back costs beside the same call awaited."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from statistics import median
from time import thread_time
from typing import Any, Final

from cachebus import BlockingCache, Cache
from cachebus.base.clock import Clock, perf_counter
from tests.bench.children import in_child
from tests.bench.rounds import ASKED
from tests.bench.rows import Row, at_most
from tests.bench.run import Bench

UNIT: Final = "async dict.get"
HITS: Final = 4_000
CROSSINGS: Final = 60
CROSSING_S: Final = 60e-6
"""What a call may cost beside one and a half of the same call awaited."""
PAIRS: Final = (
    ("blocking.miss", "L2 read by BlockingCache.get, of 1.5 awaited ones and 60 us", "get"),
    ("blocking.load", "... a load on the calling thread, likewise", "load"),
    ("blocking.invalidate", "... an invalidation, likewise", "invalidate"),
)


async def rows(bench: Bench) -> list[Row]:
    """Hits by CPU time, since nothing waits there; all else by the clock."""
    bench.progress.step("a process")
    rounds = max(3, bench.scale.rounds)
    times = json.loads(await in_child("tests.bench.blocking", bench.server.url, str(rounds)))
    unit_s = times[UNIT]
    found = [
        Row(
            f"blocking.{name}",
            f"L1 hit: {what} of BlockingCache",
            times[f"hit {name}"] / unit_s,
            "x",
            at_most(8),
            {},
            f"{times[f'hit {name}'] * 1e6:.2f} us; x = an async dict.get, {unit_s * 1e6:.2f} us",
        )
        for name, what in (("get", "get(type, id, tenant)"), ("get_or_load", "get_or_load"))
    ]
    for name, what, verb in PAIRS:
        ours_s, awaited_s = times[f"{verb} blocking"], times[f"{verb} awaited"]
        share = ours_s / (1.5 * awaited_s + CROSSING_S)
        detail = f"{ours_s * 1e6:.0f} us beside {awaited_s * 1e6:.0f}"
        found.append(Row(name, what, share, "x", at_most(1), {}, detail))
    return found


def measure(url: str, rounds: int) -> dict[str, float]:
    """Median seconds a call, in this process, turn by turn."""
    table: dict[str, Any] = dict.fromkeys(ASKED, 1)
    times: dict[str, list[float]] = {}

    async def look(key: str) -> Any:
        return table.get(key)

    async def unit(count: int) -> None:
        for one in ASKED[:count]:
            await look(one)

    def load(resource_id: str) -> str:
        return resource_id

    def note(name: str, count: int, run: Callable[[], object], clock: Clock = perf_counter) -> None:
        began_s = clock()
        run()
        times.setdefault(name, []).append((clock() - began_s) / count)

    with asyncio.Runner() as runner, BlockingCache.open(url) as ours:
        awaited = Cache.open(url)
        runner.run(awaited.__aenter__())
        for one in set(ASKED):
            ours.set("doc", one, 1, "acme")
        for turn in range(rounds):
            ours.probe()
            note(UNIT, HITS, lambda: runner.run(unit(HITS)), thread_time)
            note("hit get", HITS, lambda: [ours.get("doc", one, "acme") for one in ASKED[:HITS]], thread_time)
            note("hit get_or_load", HITS, lambda: each(ours.get_or_load, "doc", load), thread_time)
            for verb, sync, coroutine in verbs(ours, awaited, load, turn):
                note(f"{verb} blocking", CROSSINGS, sync)
                note(f"{verb} awaited", CROSSINGS, lambda coroutine=coroutine: runner.run(coroutine()))
        runner.run(awaited.aclose())
    return {name: median(of) for name, of in times.items()}


def each(verb: Callable[..., Any], data_type: str, load: Callable[[str], str]) -> None:
    """So many hits."""
    for one in ASKED[:HITS]:
        verb(data_type, one, load, "acme")


def verbs(ours: BlockingCache, awaited: Cache, load: Callable[[str], str], turn: int) -> list[tuple[str, Any, Any]]:
    """What goes over to the loop and to L2: each, and the same awaited."""
    ids = [f"{turn}-{number}" for number in range(CROSSINGS)]

    async def gets() -> None:
        for one in ASKED[:CROSSINGS]:
            await awaited.get("doc", one, "acme", use_memory=False)

    async def loads() -> None:
        for one in ids:
            await awaited.get_or_load("a", one, load, "acme")

    async def invalidations() -> None:
        for one in ids:
            await awaited.invalidate("a", one, "acme")

    return [
        ("get", lambda: [ours.get("doc", one, "acme", use_memory=False) for one in ASKED[:CROSSINGS]], gets),
        ("load", lambda: [ours.get_or_load("b", one, load, "acme") for one in ids], loads),
        ("invalidate", lambda: [ours.invalidate("b", one, "acme") for one in ids], invalidations),
    ]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
