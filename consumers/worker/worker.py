"""The life of a worker process: it works, reports its health, drains at the first signal, and ends at the second."""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from typing import Final

import anyio
from anyio.abc import TaskStatus

from cachebus.base.log import logger
from cachebus.consumers.monitoring.endpoint import Endpoint
from cachebus.consumers.monitoring.health import Health
from cachebus.consumers.monitoring.meters import Meters

BEAT_S: Final = 1.0
DRAIN_TIMEOUT_S: Final = 25.0
"""Less than the 30 s after which container platforms kill a process that has not ended."""


class Worker(ABC):
    """One worker. `run` works until `drain` is called or it is cancelled. Killed at any point, it loses nothing."""

    def __init__(self, name: str, parts: tuple[str, ...]) -> None:
        self.health = Health(name, parts)
        self.meters = Meters(self.health)
        self._draining = asyncio.Event()

    @property
    def name(self) -> str:
        """Its name in logs and metrics: "outbox", "kafka", "cdc"."""
        return self.health.worker

    @property
    def draining(self) -> bool:
        """Whether it takes nothing more."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Take nothing more, finish what was taken, and return from `run`."""
        self.health.draining = True
        self._draining.set()

    async def drained(self, timeout_s: float | None = None) -> bool:
        """Wait until it is asked to drain; False if `timeout_s` is over first. It serves as a pause that draining
        ends."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._draining.wait()
        except TimeoutError:
            return False
        return True

    @abstractmethod
    async def run(self) -> None:
        """Work until drained. Raises only errors that no waiting helps against, such as `ConfigError`."""


async def serve(worker: Worker, endpoint: Endpoint | None = None, *, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
    """Run a worker as the task of this process. SIGTERM and Ctrl-C drain it; a second one ends it at once.

    Returns False if it was ended before it was drained. What it had not finished comes again to the next worker.
    """
    if endpoint is not None:
        endpoint.start(worker.health, worker.meters)
    try:
        async with anyio.create_task_group() as group:
            await group.start(_signals, worker, group.cancel_scope, drain_timeout_s)
            group.start_soon(_beat, worker.health)
            await worker.run()
            logger.info("{}: drained" if worker.draining else "{}: done", worker.name)
            group.cancel_scope.cancel()
            return True
    except BaseExceptionGroup as group_of:
        if len(group_of.exceptions) == 1:
            raise group_of.exceptions[0] from None  # the worker's own
        raise
    finally:
        if endpoint is not None:
            endpoint.stop()
    return False


async def _beat(health: Health) -> None:
    while True:
        health.beat()
        await asyncio.sleep(BEAT_S)


async def _signals(
    worker: Worker, scope: anyio.CancelScope, drain_timeout_s: float, *, task_status: TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            break
        logger.info("{}: draining, at most {:g} s", worker.name, drain_timeout_s)
        worker.drain()
        with anyio.move_on_after(drain_timeout_s):
            async for _ in signals:
                break
    logger.warning("{}: ended before it was drained; what it had not finished comes again", worker.name)
    scope.cancel()
