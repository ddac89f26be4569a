"""Running a plan as a command: its screen, its report, its exit status, and Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from rich.console import Console

from cachebus.tools.demo.plan import DemoPlan, load_of
from cachebus.tools.demo.report import as_json, printed
from cachebus.tools.demo.run import run
from cachebus.tools.demo.screen import DemoScreen, screen_on
from cachebus.tools.demo.trace import Survey, chunks
from cachebus.tools.harness.supervisor import NodeCrashed

BROKEN: Final = 1
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


class Interrupted(Exception):
    """A signal asked this command to end, and everything that it started has ended."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number
        """The exit status that says so."""


def perform(plan: DemoPlan, *, json: bool) -> int:
    """Run the plan and report; the exit status. Raises `Interrupted`, and `CacheBusError` for what is set up wrong."""
    return until_signalled(_perform(plan, json=json))


async def _perform(plan: DemoPlan, *, json: bool) -> int:
    out = Console(stderr=json)
    with screen_on(out) as screen:
        survey = await _surveyed(plan, screen)
        try:
            outcome = await run(plan, load_of(plan, survey), screen)
        except NodeCrashed as error:
            screen.say(f"BROKEN: {error}")
            return BROKEN
    if json:
        sys.stdout.write(as_json(outcome) + "\n")
    else:
        printed(outcome, out)
    return BROKEN if outcome.broken() else 0


async def _surveyed(plan: DemoPlan, screen: DemoScreen) -> Survey | None:
    """Read the whole trace once, so that a cut one is told before anything is started."""
    if plan.trace is None:
        return None
    words: set[int] = set()
    accesses = 0
    for chunk in chunks(plan.trace):
        words.update(chunk)
        accesses += len(chunk)
        await asyncio.sleep(0)  # so that Ctrl-C is heard
    screen.say(f"{plan.trace.name}: {accesses:,} accesses to {len(words):,} objects")
    return Survey(accesses, frozenset(words))


def until_signalled(work: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop; at SIGINT, SIGTERM or SIGHUP it is cancelled once, and may clean up undisturbed."""
    heard: list[int] = []

    async def main() -> T:
        task = asyncio.ensure_future(work)

        def hear(number: int) -> None:
            if not heard:
                heard.append(number)
                task.cancel()

        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, hear, number)
        return await task

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if heard:
            raise Interrupted(heard[0]) from None
        raise
