"""The life of a worker process: it works, reports its health, drains at the first signal, and ends at the second."""

from __future__ import annotations

import asyncio
import gc
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskStatus

from cachebus.base.log import logger
from cachebus.consumers.monitoring.endpoint import Endpoint
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.monitoring.meters import Meters

BEAT_S: Final = 1.0
NEW_OBJECTS: Final = 50_000
"""So many more than before make the garbage collector look: a batch makes fewer, and lets go of them."""
LEAVE_S: Final = 5.0
DRAIN_TIMEOUT_S: Final = 25.0
"""Less than the 30 s after which container platforms kill a process that has not ended."""


class _Times(NamedTuple):
    """How long draining may take, and what part of that is for leaving."""

    drain_s: float
    leave_s: float


class Worker(ABC):
    """One worker. `run` works until `drain` is called or it is cancelled. Killed at any point, it loses nothing."""

    def __init__(self, name: str, parts: tuple[str, ...]) -> None:
        self.health = WorkerHealth(name, parts)
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


@contextmanager
def seldom_collected() -> Iterator[None]:
    """For a process that does nothing but work, once its worker is made: garbage is collected seldom.

    1. What is there by now, all modules among it, is left alone. To go through that holds the loop for 25 to 50 ms.
    2. What a batch is made of is in no cycle, so the collector does not look for one at each 700 of its objects.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def serve(
    worker: Worker,
    endpoint: Endpoint | None = None,
    *,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    abort: Callable[[], object] | None = None,
) -> bool:
    """Run a worker as the task of this process. SIGTERM and Ctrl-C drain it; a second one ends it at once.

    Of `drain_timeout_s` the last part, at most 5 s, is for leaving: connections and groups. `abort`: ends the process
    where that lasts too long, or a second signal comes.

    Returns False if it was ended before it was drained. What it had not finished comes again to the next worker.
    """
    times = _Times(drain_timeout_s, min(LEAVE_S, drain_timeout_s / 4))
    if endpoint is not None:
        endpoint.start(worker.health, worker.meters)
    try:
        async with anyio.create_task_group() as group:
            await group.start(_signals, worker, group.cancel_scope, times, abort or (lambda: None))
            group.start_soon(_beat, worker.health)
            await worker.run()
            if not group.cancel_scope.cancel_called:  # else it was told to end before, and has just done so
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


async def _beat(health: WorkerHealth) -> None:
    while True:
        health.beat()
        logger.tell_withheld()
        await asyncio.sleep(BEAT_S)


async def _signals(
    worker: Worker,
    scope: anyio.CancelScope,
    times: _Times,
    abort: Callable[[], object],
    *,
    task_status: TaskStatus[None],
) -> None:
    asked_twice = False
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            break
        logger.info("{}: draining, at most {:g} s", worker.name, times.drain_s)
        worker.drain()
        # Leaving may hang as well, also that of a worker that has finished what it had.
        asyncio.get_running_loop().call_later(times.drain_s, abort)
        with anyio.move_on_after(times.drain_s - times.leave_s):
            async for _ in signals:
                asked_twice = True
                break
    logger.warning("{}: ended before it was drained; what it had not finished comes again", worker.name)
    scope.cancel()
    if asked_twice:
        abort()
