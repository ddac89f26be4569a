"""L1 beside other caches: hit ratio on traces; then what an entry weighs, what a put takes, how long a sweep holds.

Run `python -m tests.bench.l1_bench [max_requests]`. Real traces are read from the folder CACHEBUS_TRACES (files
NAME.trace.xz of big-endian 32-bit integers, one a request); without it a seeded one is made.
"""

from __future__ import annotations

import gc
import lzma
import os
import random
import sys
import tracemalloc
from array import array
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from time import thread_time
from typing import Any

from cachebus.base.clock import perf_counter
from cachebus.l1 import L1, Entry, Group, grid, shared_int, size_class

SIZES = (1_000, 5_000, 20_000, 50_000)
ENTRIES = 100_000
LEVEL_POINTS = 0.005
"""Differences below this many points are a handful of requests: both are called level."""

Hits = Callable[[list[str], int], int]
GROUP = Group(0, "embedding", 1e9, 0, True)


def ours(requests: list[str], size: int) -> int:
    """Hits of the L1 of this library."""
    l1 = L1(size, 1 << 50)
    lookup, put = l1.entries.get, l1.put
    hits = 0
    for key in requests:
        entry = lookup(key)
        if entry is None:
            put(Entry(key, None, GROUP, 0.0, 0, 0.0, 0.0, 1))
        else:
            hits += 1
            if entry.freq < 3:
                entry.freq += 1
    return hits


def lru(requests: list[str], size: int) -> int:
    """Hits of least recently used: what async_lru, cashews' memory, aiocache-like dictionaries and cachetools offer."""
    held: OrderedDict[str, None] = OrderedDict()
    hits = 0
    for key in requests:
        if key in held:
            held.move_to_end(key)
            hits += 1
        else:
            held[key] = None
            if len(held) > size:
                held.popitem(last=False)
    return hits


def functools_lru(requests: list[str], size: int) -> int:
    """Hits of the standard library's decorator."""
    cached = lru_cache(maxsize=size)(len)
    for key in requests:
        cached(key)
    return cached.cache_info().hits


def cachetools_lfu(requests: list[str], size: int) -> int:
    """Hits of cachetools' least frequently used."""
    import cachetools

    held: Any = cachetools.LFUCache(size)
    hits = 0
    for key in requests:
        if held.get(key) is None:
            held[key] = 1
        else:
            hits += 1
    return hits


def moka(requests: list[str], size: int) -> int:
    """Hits of moka (Rust), W-TinyLFU."""
    import moka_py

    held: Any = moka_py.Moka(size)
    hits = 0
    for key in requests:
        if held.get(key) is None:
            held.set(key, 1)
        else:
            hits += 1
    return hits


def theine(requests: list[str], size: int) -> int:
    """Hits of theine (Rust core), adaptive W-TinyLFU."""
    import theine as module

    held: Any = module.Cache(size)
    hits = 0
    for key in requests:
        if held.get(key)[1]:
            hits += 1
        else:
            held.set(key, 1)
    held.close()
    return hits


PEERS: dict[str, tuple[str, Hits]] = {
    "LRU": ("collections", lru),
    "functools": ("functools", functools_lru),
    "cachetools LFU": ("cachetools", cachetools_lfu),
    "moka": ("moka_py", moka),
    "theine": ("theine", theine),
}


def traces(max_requests: int) -> dict[str, list[str]]:
    """Each trace's requests as L1 keys, no more than asked for."""
    folder = os.environ.get("CACHEBUS_TRACES", "")
    found = sorted(Path(folder).glob("*.trace.xz")) if folder else []
    if not found:
        print("made-up requests: set CACHEBUS_TRACES to a folder with real ones")
        return {"made up": made_up(min(max_requests, 300_000))}
    read: dict[str, list[str]] = {}
    for path in found:
        numbers = array("i", lzma.decompress(path.read_bytes()))
        numbers.byteswap()
        del numbers[max_requests:]
        names = {number: f"shop\x1fobject\x1f{number}\x1e\x1e\x1e" for number in set(numbers)}
        read[path.name.removesuffix(".trace.xz")] = [names[number] for number in numbers]
    return read


def made_up(count: int) -> list[str]:
    """Skewed requests for 60 000 keys, with a scan of keys read once now and then."""
    rng = random.Random(11)
    weights = list(accumulate(1 / (rank + 1) ** 0.8 for rank in range(60_000)))
    requests: list[str] = []
    while len(requests) < count:
        if rng.random() < 0.0001:
            requests += [f"scan:{len(requests)}:{step}" for step in range(2000)]
        requests.append(f"key:{bisect(weights, rng.random() * weights[-1])}")
    return requests[:count]


def hit_ratios(max_requests: int) -> None:
    """Print the table of hit ratios; a row says by how many points ours leads the best of the others."""
    peers = {name: hits for name, (module, hits) in PEERS.items() if find_spec(module)}
    if missing := [module for module, _ in PEERS.values() if not find_spec(module)]:
        print(f"not installed, hence left out: {', '.join(missing)}")
    print(f"{'hit ratio, %':<20}{'entries':>8}{'cachebus':>10}" + "".join(f"{name:>16}" for name in peers) + "    lead")
    for trace, requests in traces(max_requests).items():
        for size in SIZES:
            percent = 100 / len(requests)
            mine = ours(requests, size) * percent
            others = [hits(requests, size) * percent for hits in peers.values()]
            lead = mine - max(others)
            verdict = "level" if abs(lead) < LEVEL_POINTS else f"{lead:+.2f}"
            row = "".join(f"{other:16.2f}" for other in others)
            print(f"{trace:<20}{size:8}{mine:10.2f}{row}{verdict:>8}", flush=True)


def keys(count: int) -> list[str]:
    """Keys as services make them, no two alike."""
    rng = random.Random(1)
    return [f"tenant{rng.randrange(50)}\x1fembedding\x1f{rng.getrandbits(60):x}\x1e\x1e\x1e" for _ in range(count)]


def loaded(names: list[str], max_entries: int, loads_a_seq: int) -> L1:
    """An L1 filled at 2 000 loads a second, TTLs of an hour with jitter, an event after every `loads_a_seq` loads."""
    rng = random.Random(2)
    l1 = L1(max_entries, 1 << 50)
    for number, key in enumerate(names):
        now_s = 1000 + number / 2000
        expires_s = grid(now_s + rng.uniform(3240, 3960), 3600.0)
        seq = shared_int(10**6 + number // loads_a_seq)
        size = size_class(rng.randrange(50, 5000))
        l1.put(Entry(key, None, GROUP, expires_s, seq, grid(now_s + 2, 2.0), expires_s, size))
        # A third of the entries is read again, so that both queues are used.
        again = l1.entries.get(names[max(0, number - rng.randrange(max_entries // 2))]) if number % 3 == 0 else None
        if again is not None and again.freq < 3:
            again.freq += 1
    return l1


def memory() -> None:
    """Print what an entry weighs after four times as many inserts as there is room for, goal 220 bytes."""
    names = keys(4 * ENTRIES)
    for what, loads_a_seq in (("20 loads an event", 20), ("every seq its own", 1)):
        gc.collect()
        tracemalloc.start()
        l1 = loaded(names, ENTRIES, loads_a_seq)
        taken_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        print(f"bytes an entry beside key and value, {what:<20}{taken_bytes / len(l1):8.1f}   goal <= 220")
        l1.clear()


def puts() -> None:
    """Print what a put takes, alone and with an eviction, and the longest of all."""
    names = keys(2 * ENTRIES)
    for what, room in (("no eviction", 2 * ENTRIES), ("evicting", ENTRIES)):
        l1 = L1(room, 1 << 50)
        entries = [Entry(key, None, GROUP, 0.0, 0, 0.0, 0.0, 1) for key in names]
        for entry in entries[:ENTRIES]:
            l1.put(entry)
        started = perf_counter()
        for entry in entries[ENTRIES:]:
            l1.put(entry)
        print(f"a put, {what:<33}{(perf_counter() - started) / ENTRIES * 1e6:11.2f} us")
        l1.clear()


def sweep(l1: L1, what: str, dead_halves: int) -> None:
    """Print the longest slice of one sweep: by the clock, and by the CPU (a busy machine takes it away for longer)."""
    steps = l1.sweep(lambda entry: entry.seq % 2 < dead_halves, perf_counter)
    removed: list[int] = []
    wall_s: list[float] = []
    cpu_s: list[float] = []
    step: int | None = 0
    while step is not None:
        removed.append(step)
        started, worked = perf_counter(), thread_time()
        step = next(steps, None)
        wall_s.append(perf_counter() - started)
        cpu_s.append(thread_time() - worked)
    print(
        f"sweep, {what:<13}{sum(removed):7} removed in {len(wall_s):4} slices of at most {max(wall_s) * 1e3:6.2f} ms "
        f"({max(cpu_s) * 1e3:.2f} of CPU), {sum(wall_s) * 1e3:.0f} ms in all"
    )


def collection() -> float:
    """Seconds of CPU that a full garbage collection takes, the best of five."""
    gc.collect()
    times_s: list[float] = []
    for _ in range(5):
        started = thread_time()
        gc.collect()
        times_s.append(thread_time() - started)
    return min(times_s)


def sweeps() -> None:
    """Print the longest slices of sweeps over 100 000 entries, and the time of the collector over them."""
    without_s = collection()
    l1 = loaded(keys(ENTRIES), ENTRIES, 20)
    print(f"a full garbage collection takes {(collection() - without_s) * 1e3:.1f} ms longer than without entries")
    for what, dead_halves in (("none dead", 0), ("half are dead", 1), ("all dead", 2)):
        sweep(l1, what, dead_halves)
        l1.check()


def main(max_requests: int = sys.maxsize) -> None:
    """Measure everything; about five minutes with full traces and all peers installed."""
    puts()
    sweeps()
    memory()
    hit_ratios(max_requests)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
