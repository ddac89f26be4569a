"""Processes that come to a chosen step of an operation and stop there, to be killed or woken. Started by `Mortals`.

Run as a module it is their mother: for each line of its input, a JSON list of arguments, it forks a process that opens
a cache and runs an operation. What happens is printed as JSON lists that begin with the number of the line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cachebus import Cache, CacheBusError
from cachebus.base.clock import monotonic
from tests.support.caches import quick
from tests.support.every_step import numbered
from tests.support.operations import OPERATIONS, WHERE, Stage
from tests.support.steps import Steps, When

ROOT = Path(__file__).parents[2]
READS = 60


class Mortals:
    """The mother's side: `begin` a process, and read what it says by its number. They all end with this object."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.mortal"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: dict[int, list[list[Any]]] = defaultdict(list)
        self.pids: dict[int, int] = {}
        self._thread = threading.Thread(target=self._gather)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for number in self.pids:
            self.signal(number, signal.SIGKILL)
        self._process.stdin.close()  # it reaps its children, and ends
        self._thread.join()
        self._process.stdout.close()
        self._process.wait()

    def _gather(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            number, *told = json.loads(line)
            if told[0] == "pid":
                self.pids[number] = told[1]
            self.said[number].append(told)

    def begin(self, number: int, url: str, namespace: str, name: str, at: int, when: When, *, frozen: bool) -> None:
        """Have a process run an operation up to that step; `frozen`: all of it stops there, not the operation alone."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([number, url, namespace, name, at, when, frozen]) + "\n")
        self._process.stdin.flush()

    def told(self, number: int, what: str) -> list[Any] | None:
        """What a process said of this kind, if it has."""
        return next((told for told in self.said[number] if told[0] == what), None)

    def stopped(self, number: int) -> bool:
        """Whether a process lies still by SIGSTOP."""
        return " T " in Path(f"/proc/{self.pids[number]}/stat").read_text()

    def signal(self, number: int, sign: signal.Signals) -> None:
        """Send a signal to one of them, if it has not ended."""
        if self.told(number, "end") is None:
            os.kill(self.pids[number], sign)


def _say(*told: Any) -> None:
    # One write, so that the lines of several processes do not mix.
    os.write(1, json.dumps(told).encode() + b"\n")


async def _live(number: int, url: str, namespace: str, name: str, at: int, when: When, frozen: bool) -> None:
    def say(*told: Any) -> None:
        _say(number, *told)

    steps = Steps(at, when)

    async def befall() -> None:
        say("there", steps.taken)
        if frozen:
            os.kill(os.getpid(), signal.SIGSTOP)
            stage.version += 1  # the source went on meanwhile
        else:
            await asyncio.Event().wait()

    steps.befall = befall
    # Many begin at once: that this machine is busy is no outage of L2.
    cache = Cache(quick(url, namespace=namespace, lease_ms=300, l2_timeout_s=5.0))
    stage = Stage(cache, cache, monotonic)
    async with cache:
        if name in ("get_or_load", "get"):
            await stage.read(cache)
        with numbered(stage, steps):
            try:
                await steps.watch(OPERATIONS[name].run(stage))
            except CacheBusError as error:
                say("error", repr(error))
            if not steps.happened:
                say("through")
            for _ in range(READS if steps.happened else 0):
                started_s = monotonic()
                try:
                    say("read", started_s, await cache.get("config", "x", **WHERE))
                except CacheBusError as error:
                    say("read", started_s, repr(error))
                await asyncio.sleep(0.002)
    say("closed")


def _mother() -> None:
    children: dict[int, int] = {}
    for line in sys.stdin:
        number, *arguments = json.loads(line)
        pid = os.fork()
        if not pid:
            asyncio.run(_live(number, *arguments))
            os._exit(0)
        children[pid] = number
        _say(number, "pid", pid)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _mother()
