"""The driver's clients, started and closed whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from cachebus.base.log import logger
from cachebus.bus.kafka.connection import dropped
from cachebus.resp import ended

Client = TypeVar("Client")
AT_WORK: Final = (
    "_sync_task",
    "_coordination_task",
    "_heartbeat_task",
    "_commit_refresh_task",
    "_reset_committed_task",
    "_fetch_task",
    "_sender_task",
)
"""What the driver calls the tasks of its clients and their parts."""

End = Callable[[], Coroutine[Any, Any, None]]


class Endings:
    """The driver's clients, started and closed whole, in tasks of their own: who is being cancelled can't wait for
    them, and what the driver gives up amid connecting, or closing, stays open."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def started(self, client: Any, end: End | None = None) -> None:
        """Start a client; the driver's errors. One that can't be started is ended, by `end`, or its own `close` or
        `stop`; where whoever waits is cancelled meanwhile, that happens when it has started, or failed."""
        starting = asyncio.create_task(client.start(), name="cachebus-kafka-start")
        try:
            await asyncio.shield(starting)
        except BaseException:
            self.add(asyncio.create_task(_ended(starting, end or _end_of(client)), name="cachebus-kafka-end"))
            raise

    @asynccontextmanager
    async def running(self, client: Client, end: End | None = None) -> AsyncIterator[Client]:
        """A client while it is used; it is ended likewise. Wait for that by `over`."""
        await self.started(client, end)
        try:
            yield client
        finally:
            self.add(asyncio.create_task((end or _end_of(client))(), name="cachebus-kafka-end"))

    def add(self, task: asyncio.Task[None]) -> None:
        """Remember it until it has ended."""
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a Kafka client did not close cleanly: {!r}", task.exception())

    async def over(self, timeout_s: float) -> None:
        """Wait until all have ended, but no longer than that: what a broker does not answer is given up. Whoever is
        cancelled here waits likewise."""
        try:
            await self._wait(timeout_s)
        except asyncio.CancelledError:
            await self._wait(timeout_s)
            raise
        finally:
            for task in self._tasks:
                task.cancel()
            await self._wait(timeout_s)

    async def _wait(self, timeout_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)


async def _ended(starting: asyncio.Task[None], end: End) -> None:
    try:
        await asyncio.wait([starting])
    finally:
        starting.cancel()
        await end()


def _end_of(client: Any) -> End:
    async def end() -> None:
        whole = False
        try:
            await (getattr(client, "close", None) or client.stop)()
            whole = True
        finally:
            if not whole:
                await _torn_down(client)

    return end


async def _torn_down(client: Any) -> None:
    """End what the driver leaves at work where a client's end is given up, as while its farewell is not answered."""
    inner = getattr(client, "client", None) or client._client
    inner.is_closed = True
    parts = [inner, *(getattr(client, name, None) for name in ("_coordinator", "_fetcher", "_sender"))]
    pending = getattr(getattr(client, "_fetcher", None), "_pending_tasks", ())
    await ended(*(getattr(part, name, None) for part in parts for name in AT_WORK), *pending)
    await asyncio.gather(*(dropped(connection) for connection in inner._conns.values()))
