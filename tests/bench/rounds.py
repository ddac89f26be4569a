"""Rounds of the same work by several contenders, in turn, so that what disturbs the machine disturbs them all alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final
from uuid import UUID

from cachebus.base.clock import Clock, perf_counter
from tests.bench.scale import SILENT, Progress

IDS: Final = [f"agent-{number}" for number in range(100)]
"""What is asked for: few enough to be hot, as more would measure the CPU's caches and not the code."""
NUMBERS: Final = {one: 100_000 + number for number, one in enumerate(IDS)}
"""For each of them an int that may be asked for in its place."""
UUIDS: Final = {one: UUID(int=number) for one, number in NUMBERS.items()}
"""And a UUID."""
CALLS_MAX: Final = 20_000
"""A loop of hits never lets the event loop go: past this many calls a lease could lapse in a round."""
ASKED: Final = [IDS[number * 7 % len(IDS)] for number in range(CALLS_MAX)]

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
    contenders: Sequence[Contender],
    rounds: int,
    *,
    between: Callable[[], Awaitable[object]],
    round_s: float = 0.0,
    progress: Progress = SILENT,
    clock: Clock = perf_counter,
) -> dict[str, float]:
    """Median seconds a call, by name. `between` is awaited after each turn of all of them.

    With `round_s` a round has as many calls as take so long (those with `calls` of their own keep to these), and some
    before it that are not measured. Rounds are best equally long: the longer, the likelier another process cuts in.
    """
    calls: dict[str, int] = {}
    for contender in contenders:
        calls[contender.name] = contender.calls or await _calibrated(contender, round_s, clock)
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    await between()
    for turn in range(rounds):
        # Each second turn backwards, so that nobody is always the one after a particular other.
        for contender in contenders[:: 1 if turn % 2 else -1]:
            times[contender.name].append(await _round(contender, calls[contender.name], clock, warm=round_s > 0))
        await between()
        progress.step(f"round {turn + 1} of {rounds}")
    return {name: median(of) for name, of in times.items()}


async def _round(contender: Contender, calls: int, clock: Clock, *, warm: bool) -> float:
    ids = ASKED[:calls]
    before = calls // 8 if warm else 0
    await asyncio.sleep(0)
    if before:
        # The CPU's caches are full of what the one before needed: not this one's doing.
        await contender.run(ASKED[:before])
    started = clock()
    await contender.run(ids)
    took_s = clock() - started
    if contender.check is not None:
        contender.check(calls + before)
    return took_s / calls


async def _calibrated(contender: Contender, round_s: float, clock: Clock) -> int:
    """How many calls make a round."""
    call_s = await _round(contender, 200, clock, warm=True)
    return max(24, min(CALLS_MAX, int(round_s / max(call_s, 1e-8))))


def p99(times: Sequence[float]) -> float:
    """The value that one in a hundred exceeds."""
    return quantiles(times, n=100)[98]
