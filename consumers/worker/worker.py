"""The life of a worker: it works, tells how it is, drains when asked to, and ends at once when asked twice."""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from typing import Final

import anyio
from anyio.abc import TaskStatus
from loguru import logger

from cachebus.consumers.monitoring.endpoint import Endpoint
from cachebus.consumers.monitoring.health import Health
from cachebus.consumers.monitoring.meters import Meters

BEAT_S: Final = 1.0
DRAIN_TIMEOUT_S: Final = 25.0
"""Less than the 30 s after which those who run containers end what has not ended by itself."""


class Worker(ABC):
    """One worker: `run` works until `drain` was called or it is cancelled. Killed at any point, it loses nothing."""

    def __init__(self, name: str, parts: tuple[str, ...]) -> None:
        self.health = Health(name, parts)
        self.meters = Meters(self.health)
        self._draining = asyncio.Event()

    @property
    def name(self) -> str:
        """What it is called in logs and figures: "outbox", "kafka", "cdc"."""
        return self.health.worker

    @property
    def draining(self) -> bool:
        """Whether it is to take nothing more."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Take nothing more, finish what was taken, and return from `run`."""
        self.health.draining = True
        self._draining.set()

    async def drained(self, timeout_s: float | None = None) -> bool:
        """Wait until it is to drain; False when `timeout_s` is over before: a pause that draining cuts short."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._draining.wait()
        except TimeoutError:
            return False
        return True

    @abstractmethod
    async def run(self) -> None:
        """Work, until drained. Raises only what no waiting helps against, such as `ConfigError`."""


async def serve(worker: Worker, endpoint: Endpoint | None = None, *, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
    """Run a worker as this process's business: SIGTERM and Ctrl-C drain it, a second one ends it at once.

    False where it had to be ended before it was drained: what it had not finished comes again to the next.
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
