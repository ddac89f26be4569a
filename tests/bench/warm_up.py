"""A rolling restart of eight nodes, cold and warmed up: what the first reads of the new nodes cost, and whom.

Each node is a process, over one Redis. All have read the keys, by Zipf's law, until they are warm. Then one after the
other gets a successor, which begins before it ends, and whose first reads are looked at. In three ways:

1. cold: without `warm_up`.
2. meanwhile: with it, and read from at once.
3. waited for: with it, and read from once `cache.warmed()` has returned.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from tests.bench.children import Talk, talking
from tests.bench.rounds import p99
from tests.bench.rows import Row
from tests.bench.run import Bench
from tests.bench.scale import Scale

NODES: Final = 8
COLD: Final = "cold"
MEANWHILE: Final = "meanwhile"
WAITED: Final = "waited for"


@dataclass
class Restart:
    """What the first reads of all new nodes came to."""

    ready_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    l1: int = 0
    l2: int = 0
    loads: int = 0
    warmed: int = 0

    @property
    def share(self) -> float:
        """Of 100 reads, how many memory has answered."""
        return 100 * self.l1 / max(1, len(self.took_s))

    def add(self, ready_s: float, found: dict[str, Any]) -> None:
        """One node's."""
        self.ready_s.append(ready_s)
        self.took_s += found["took_s"]
        self.l1 += found["l1"]
        self.l2 += found["l2"]
        self.loads += found["loads"]
        self.warmed += found["warmed"]


async def rows(bench: Bench) -> list[Row]:
    """A row for each figure; the two other ways stand beside it."""
    nodes = 2 if bench.scale == Scale.quick() else NODES
    keys, first = max(bench.scale.entries // 20, 200), bench.scale.operations
    found = {way: await _restart(bench, way, nodes, keys, first) for way in (COLD, MEANWHILE, WAITED)}
    ours = found[WAITED]
    said = f"{nodes} nodes, {keys:,} keys, the first {first:,} reads of each"
    ready = ", ".join(f"{way} {_mean(one.ready_s):.2f} s" for way, one in found.items())
    took = f"of them {ours.warmed // nodes:,} by the warm-up; from open to the first read {ready}"

    def row(name: str, what: str, unit: str, figure: Any, detail: str = "") -> Row:
        peers = {way: float(figure(found[way])) for way in (COLD, MEANWHILE)}
        return Row(f"warm-up.{name}", f"rolling restart: {what}", float(figure(ours)), unit, None, peers, detail)

    return [
        row("hits", "first reads from memory", "%", lambda one: one.share, said),
        row("l2", "first reads that asked L2", "a node", lambda one: one.l2 / nodes),
        row(
            "server",
            "values that L2 gave in all, warm-up included",
            "a node",
            lambda one: (one.l2 + one.warmed) / nodes,
            took,
        ),
        row("source", "loads of the source", "in all", lambda one: one.loads),
        row("mean", "a first read, the mean", "us", lambda one: _mean(one.took_s) * 1e6),
        row("p99", "a first read, p99", "us", lambda one: p99(one.took_s) * 1e6),
    ]


def _mean(took_s: list[float]) -> float:
    return sum(took_s) / max(1, len(took_s))


async def _restart(bench: Bench, way: str, nodes: int, keys: int, first: int) -> Restart:
    bench.server.command("FLUSHALL")
    found = Restart()

    async def begun(stack: AsyncExitStack) -> tuple[Talk, float]:
        talk = await stack.enter_async_context(talking("tests.bench.warm_up_node", bench.server.url, str(keys), way))
        return talk, (await talk.hear())["ready_s"]

    async with AsyncExitStack() as all_of_them:
        old = [await all_of_them.enter_async_context(AsyncExitStack()) for _ in range(nodes)]
        bench.progress.step(f"{way}: {nodes} nodes become warm")
        talks = [talk for talk, _ in await asyncio.gather(*(begun(stack) for stack in old))]
        await asyncio.gather(*(talk.ask(count=2 * keys, paced=False) for talk in talks))
        await asyncio.sleep(1.0)  # each has said by its row that it is warm
        for number, stack in enumerate(old):
            bench.progress.step(f"{way}: node {number + 1} of {nodes} is replaced")
            talk, ready_s = await begun(all_of_them)
            found.add(ready_s, await talk.ask(count=first, paced=True))
            await stack.aclose()
    return found
