"""Rounds of the same work by several contenders, in turn, so that what disturbs the machine disturbs them all alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final

from cachebus.clock import Clock, perf_counter
from tests.bench.scale import SILENT, Progress

IDS: Final = [f"agent-{number}" for number in range(100)]
"""What is asked for: few enough to be hot, as more would measure the CPU's caches and not the code."""
CALLS_MAX: Final = 20_000
"""A loop of hits never lets the event loop go: past this many calls a lease could lapse in a round."""
_ASKED: Final = [IDS[number * 7 % len(IDS)] for number in range(CALLS_MAX)]

Run = Callable[[Sequence[str]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work: `run` does it once for each id given. `check` is told after every round how many."""

    name: str
    run: Run
    check: Callable[[int], None] | None = None
    calls: int = 0
    """How many calls a round has; 0 = as many as fit into it."""


async def race(
    contenders: Sequence[Contender], rounds: int, round_s: float, *, between: Callable[[], Awaitable[object]],
    progress: Progress = SILENT, clock: Clock = perf_counter,
) -> dict[str, float]:  # fmt: skip
    """Median seconds a call, by name. `between` is awaited after each turn of all of them.

    All rounds take about the same time, since the longer one is, the likelier another process cuts into it.
    """
    calls = {contender.name: await _calibrated(contender, round_s, clock) for contender in contenders}
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    await between()
    for turn in range(rounds):
        # Each second turn backwards, so that nobody is always the one after a particular other.
        for contender in contenders[:: 1 if turn % 2 else -1]:
            times[contender.name].append(await _round(contender, calls[contender.name], clock))
        await between()
        progress.step(f"round {turn + 1} of {rounds}")
    return {name: median(of) for name, of in times.items()}


async def _round(contender: Contender, calls: int, clock: Clock) -> float:
    ids = _ASKED[:calls]
    await asyncio.sleep(0)
    # The CPU's caches are full of the one before: not this one's doing.
    await contender.run(_ASKED[: calls // 8])
    started = clock()
    await contender.run(ids)
    took_s = clock() - started
    if contender.check is not None:
        contender.check(calls + calls // 8)
    return took_s / calls


async def _calibrated(contender: Contender, round_s: float, clock: Clock) -> int:
    """How many calls make a round; the first ones, which warm up, are not looked at."""
    await contender.run(_ASKED[:100])
    if contender.check is not None:
        contender.check(100)
    call_s = await _round(contender, 100, clock)
    return contender.calls or max(24, min(CALLS_MAX, int(round_s / max(call_s, 1e-8))))


def p99(times: Sequence[float]) -> float:
    """The value that one in a hundred exceeds."""
    return quantiles(times, n=100)[98]
