"""What fits into memory, and how well it is used: hit ratios on traces, bytes an entry, and dropping a whole scope."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tracemalloc
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from time import thread_time
from typing import Any, Final

from cachebus import Cache
from cachebus.base.clock import monotonic, perf_counter
from cachebus.core.admission import Offer
from cachebus.keys.key import Keyspace
from cachebus.l1 import L1
from cachebus.wire.record import Record
from tests.bench import l1_bench
from tests.bench.children import in_child
from tests.bench.rows import Row, at_least, at_most
from tests.bench.run import Bench
from tests.support.poll import eventually

TICK_S: Final = 0.001
MANY: Final = 1 << 60


# -- hit ratio -------------------------------------------------------------------------------------------------


async def hit_ratios(bench: Bench) -> list[Row]:
    """One row for each trace and size, and one for the smallest lead of all; sizes that hold a whole trace left out.

    Nothing is timed here, so every core helps.
    """
    requests = str(bench.scale.requests)
    cells = json.loads(last_line(await in_child("tests.bench.memory", "cells", requests)))
    turns = asyncio.Semaphore(os.cpu_count() or 1)

    async def replay(trace: str, size: int) -> Row:
        async with turns:
            found = json.loads(last_line(await in_child("tests.bench.memory", "replay", requests, trace, str(size))))
        bench.progress.step(f"{trace}, {size} entries")
        ours = found.pop("ours")
        return Row(f"ratio.{trace}.{size}", f"hit ratio: {trace}, {size:,} entries", ours, "%", None, found)

    found = await asyncio.gather(*[replay(trace, size) for trace, size in cells])
    worst = min(found, key=lead_of)
    return [
        *found,
        Row(
            "ratio.lead",
            "hit ratio: smallest lead over the best peer, of all traces and sizes",
            lead_of(worst),
            "points",
            at_least(-l1_bench.LEVEL_POINTS),
            {},
            worst.what.removeprefix("hit ratio: "),
        ),
    ]


def lead_of(row: Row) -> float:
    """By how many points ours leads the best of the others."""
    return row.ours - max(row.peers.values())


def last_line(said: str) -> str:
    """What a child answers comes last: it may have remarked on something before."""
    return said.strip().rpartition("\n")[2]


def cells(requests: int) -> list[tuple[str, int]]:
    """Every trace with every size that does not hold all of it."""
    traces = l1_bench.traces(requests)
    return [(name, size) for name, keys in traces.items() for size in l1_bench.SIZES if size < len(set(keys))]


def replayed(requests: int, trace: str, size: int) -> dict[str, float]:
    """Hits of a hundred requests, ours and every installed peer's."""
    keys = l1_bench.traces(requests)[trace]
    percent = 100 / len(keys)
    peers = {name: hits for name, (module, hits) in l1_bench.PEERS.items() if find_spec(module)}
    return {name: hits(keys, size) * percent for name, hits in {"ours": l1_bench.ours, **peers}.items()}


# -- bytes an entry --------------------------------------------------------------------------------------------


async def entry_bytes(bench: Bench) -> list[Row]:
    """What an entry takes beside its key and value, ghosts and queues included, after four times as many inserts.

    Nothing is timed here either: each is weighed in a process of its own, all at once.
    """
    room = bench.scale.entries
    names = [name for name, module in WEIGHED.items() if find_spec(module.partition(".")[0])]
    said = await asyncio.gather(*[in_child("tests.bench.memory", "weigh", str(room), name) for name in names])
    bytes_each = {name: json.loads(last_line(one)) / room for name, one in zip(names, said, strict=True)}
    sharing, alone = bytes_each.pop(SHARING), bytes_each.pop(ALONE)
    return [
        Row(
            "memory.entry",
            "memory an L1 entry, beside key and value, ghosts included",
            sharing,
            "bytes",
            at_most(220),
            bytes_each,
            "an event every 20 loads",
        ),
        Row("memory.entry_worst", "... the same, an event after every load", alone, "bytes", at_most(220)),
    ]


SHARING, ALONE = "cachebus", "cachebus, an event after every load"
WEIGHED: Final = {
    SHARING: "cachebus",
    ALONE: "cachebus",
    "cachetools LRU": "cachetools",
    "cashews": "cashews.backends.memory",
}


async def weigh(name: str, room: int) -> int:
    """Bytes that as many entries take, there."""
    import_module(WEIGHED[name])  # which is not to be weighed
    names = l1_bench.keys(4 * room)
    if name in (SHARING, ALONE):
        return await weighed(loaded(names, room, 20 if name == SHARING else 1))
    return await weighed(cachetools(names, room) if name == "cachetools LRU" else cashews(names[:room], room))


async def loaded(names: list[str], room: int, loads_a_seq: int) -> L1:
    """Our L1, full."""
    return l1_bench.loaded(names, room, loads_a_seq)


async def weighed(making: Awaitable[object]) -> int:
    """Bytes that are held by what this makes."""
    gc.collect()
    tracemalloc.start()
    try:
        made = await making
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    if isinstance(made, L1):
        made.clear()  # the collector does not see its entries
    return held_bytes


async def cachetools(names: Iterable[str], room: int) -> Any:
    """An LRU without expiry."""
    from cachetools import LRUCache

    held: Any = LRUCache(room)
    for name in names:
        held[name] = None
    return held


async def cashews(names: Iterable[str], room: int) -> Any:
    """Its memory, an hour for each."""
    from cashews.backends.memory import Memory

    held = Memory(size=room, check_interval=0)
    for name in names:
        await held.set(name, True, expire=3600)
    return held


# -- dropping a scope --------------------------------------------------------------------------------------------


async def drops(bench: Bench) -> list[Row]:
    """The call, and for how long the loop answered nobody afterwards until all was gone.

    The hold is of CPU time: of the wall's, other processes take more than a drop does, as the idle loop shows.
    """
    count = bench.scale.entries
    calls: list[float] = []
    holds: list[Hold] = []
    idle: list[Hold] = []
    for turn in range(bench.scale.drops):
        bench.progress.step(f"drop {turn + 1} of {bench.scale.drops}")
        async with Cache.open(bench.server.url) as cache:  # a new one, as the sweep of the last rests after its work
            fill(cache, count)
            with collector_off():
                idle.append(await longest_hold(asyncio.sleep(0.3)))
                holds.append(await longest_hold(dropped(cache, calls)))
    hold, still = Hold.median(holds), Hold.median(idle)
    found = [
        Row("drop.call", f"dropping a scope of {count:,} entries: the call", median(calls) * 1e3, "ms", at_most(1.0)),
        Row(
            "drop.hold",
            "... and the longest hold of the loop (its CPU time) until all are gone",
            hold.cpu_s * 1e3,
            "ms",
            at_most(5.0),
            {},
            f"by the wall {hold.wall_s * 1e3:.1f} ms, idle {still.wall_s * 1e3:.1f} ms",
        ),
    ]
    if find_spec("cashews"):
        held = await cashews([f"acme:embedding:{number}" for number in range(count)], MANY)
        began = perf_counter()
        with collector_off():
            hold = await longest_hold(held.delete_match("acme:embedding:*"))
        found[0].peers["cashews memory"] = (perf_counter() - began) * 1e3
        found[1].peers["cashews memory"] = hold.cpu_s * 1e3
    return found


@contextmanager
def collector_off() -> Iterator[None]:
    """A full collection has nothing to do with drops, and would be the longest hold of all."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def fill(cache: Cache, count: int) -> None:
    """Put entries into L1 as reads of L2 would."""
    parts = cache._live()
    node, keyspace = parts.node, Keyspace(1)
    shard = node.shards[0]
    now_s = monotonic()
    for number in range(count):
        key = keyspace.key("embedding", f"doc-{number}", "acme")
        record = Record(0, 1, b"\x01", created_ms=0, epoch=shard.epoch, seq=shard.applied)
        assert node.admit(Offer(key, number, record, shard.reserve(), now_s))
    assert len(node.l1) >= count


async def dropped(cache: Cache, calls: list[float]) -> None:
    """Drop all, and wait until the memory is free again."""
    node = cache._live().node
    started = perf_counter()
    await cache.invalidate_scope("acme", "embedding")
    calls.append(perf_counter() - started)

    async def gone() -> bool:
        return not len(node.l1)

    await eventually(gone, within_s=60)


@dataclass(frozen=True, slots=True)
class Hold:
    """The longest time that a loop kept a timer waiting, by the wall's clock, and by the CPU time spent meanwhile."""

    wall_s: float
    cpu_s: float

    @classmethod
    def median(cls, holds: list[Hold]) -> Hold:
        """The middle one, clock by clock."""
        return cls(median(hold.wall_s for hold in holds), median(hold.cpu_s for hold in holds))


async def longest_hold(work: Awaitable[object]) -> Hold:
    """What a timer of 1 ms, set again and again while the work goes on, is kept waiting."""
    ticks: list[tuple[float, float]] = []

    async def tick() -> None:
        while True:
            ticks.append((perf_counter(), thread_time()))
            await asyncio.sleep(TICK_S)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        await work
    finally:
        ticks.append((perf_counter(), thread_time()))
        ticker.cancel()
    gaps = [(later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in pairwise(ticks)]
    return Hold(max(wall for wall, _ in gaps) - TICK_S, max(cpu for _, cpu in gaps))


async def main(what: str, size: str, *more: str) -> Any:
    """What this process was started for."""
    if what == "cells":
        return cells(int(size))
    if what == "weigh":
        return await weigh(more[0], int(size))
    return replayed(int(size), more[0], int(more[1]))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
