"""The node processes of a run. Faults kill some of them, and start others in their place."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

from cachebus.base.clock import monotonic
from cachebus.tools.harness.messages import GO, Tick
from cachebus.tools.harness.supervisor import START_S, NodeCrashed, NodeProcess, end_all, until_ready, until_stopped
from cachebus.tools.verify.fleet import messages
from cachebus.tools.verify.fleet.messages import VerifyJob

MODULE: Final = "cachebus.tools.verify.fleet.node"
ASK_S: Final = 60.0


@dataclass
class ProcessLife:
    """One process of a node, from its start to its end, with its last figures."""

    process: NodeProcess
    name: str
    began_s: float
    ended_s: float = float("inf")
    tick: Tick | None = None


class FleetUnderTest:
    """All node processes. An async context manager: entering waits until all are connected, leaving ends all."""

    def __init__(self, job_of: Callable[[int, int], VerifyJob], nodes: int) -> None:
        self._job_of = job_of
        self._nodes = nodes
        self._now: dict[int, ProcessLife] = {}
        self._begun: Counter[int] = Counter()
        self.lives: list[ProcessLife] = []

    async def __aenter__(self) -> Self:
        try:
            for node in range(1, self._nodes + 1):
                await self._begin(node)
            await until_ready(self._processes)
        except BaseException:
            await end_all(self._processes)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_all(self._processes)

    @property
    def _processes(self) -> list[NodeProcess]:
        """Those that run now, or did last."""
        return [life.process for life in self._now.values()]

    @property
    def numbers(self) -> range:
        """The numbers of the nodes."""
        return range(1, self._nodes + 1)

    def go(self) -> None:
        """Have all nodes begin their load."""
        for life in self._now.values():
            life.process.order(GO)

    def order(self, node: int, order: str, seconds: float) -> None:
        """Send a node an order, and wait for nothing."""
        self._now[node].process.order(f"{order} {seconds:.4f}\n".encode())

    def signal(self, node: int, number: signal.Signals) -> None:
        """Send a node's process a signal."""
        os.kill(self._now[node].process.pid, number)

    async def kill(self, node: int) -> None:
        """End a node by SIGKILL, on purpose."""
        life = self._now[node]
        life.ended_s = monotonic()
        await life.process.end()

    async def start(self, node: int) -> None:
        """Start a node again after `kill`, and have it begin its load."""
        await self._begin(node)
        process = self._now[node].process
        ended: list[asyncio.Future[Any]] = [process.ready, process.done]
        await asyncio.wait(ended, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if not process.ready.done():
            raise NodeCrashed(f"node {node}, started anew, was not ready in {START_S:g} s")
        process.ready.result()
        process.order(GO)

    async def watch(self, at_most_s: float) -> None:
        """Wait for so long; `NodeCrashed` as soon as a node ends that no fault has killed."""
        alive = [life for life in self._now.values() if life.ended_s == float("inf")]
        await asyncio.wait(
            [life.process.done for life in alive], timeout=at_most_s, return_when=asyncio.FIRST_COMPLETED
        )
        for life in alive:
            if life.process.done.done() and life.ended_s == float("inf"):  # a fault may have killed it meanwhile
                life.process.done.result()

    async def ask(self, order: str, argument: str = "", *, node: int | None = None) -> dict[int, str]:
        """Send one node, or all, an order, and return each one's answer."""
        nodes = self.numbers if node is None else (node,)
        async with asyncio.TaskGroup() as group:
            asked = {n: group.create_task(self._now[n].process.ask(order, argument, within_s=ASK_S)) for n in nodes}
        return {n: task.result() for n, task in asked.items()}

    async def stop(self) -> None:
        """Have all nodes stop. Their last figures are in `lives`."""
        for process in self._processes:
            process.order(f"{messages.STOP}\n".encode())
        await until_stopped(self._processes)

    async def _begin(self, node: int) -> None:
        self._begun[node] += 1
        job = self._job_of(node, self._begun[node])

        def on_tick(tick: Tick) -> None:
            life.tick = tick

        process = NodeProcess(job, on_tick, module=MODULE)
        life = ProcessLife(process, job.name, monotonic())
        self._now[node] = life
        self.lives.append(life)
        await process.start()
