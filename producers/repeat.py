"""Repeats in the present epoch what a producer has sent in an earlier one, and a failover may have lost.

A task for each shard does so: a full buffer takes many steps, which no call should wait for, or fail by. What is
repeated stays repeated if the rest fails; the rest is tried until it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from cachebus.base.backoff import Backoff
from cachebus.base.clock import OtherClock
from cachebus.base.kept import kept
from cachebus.base.log import logger
from cachebus.core.ports import Change, ProbeReply
from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.keys.plan import Plan
from cachebus.resp import ended
from cachebus.writing.resend_buffer import ResendBuffer, born_s

Ask = Callable[[int], Awaitable[tuple[ProbeReply, OtherClock]]]
"""Probes a shard; returns the reply, and the clock of its server. `L2Unavailable`."""
Send = Callable[[Plan], Awaitable[Change]]
"""Applies a plan in L2, and notes it in the buffer. `L2Unavailable`."""


class _AnotherEpoch(Exception):
    """Another epoch began during the repetition: what was repeated may be lost too."""


class ProducerResender:
    """The repetitions of one open producer."""

    def __init__(self, buffer: ResendBuffer, epochs: dict[int, bytes], ask: Ask, send: Send) -> None:
        """`epochs`: by shard, the epoch in which all is sent that was sent for the shard."""
        self._buffer = buffer
        self._epochs = epochs
        self._ask = ask
        self._send = send
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._again: set[int] = set()
        self._turns: dict[int, asyncio.Lock] = {}
        self._closed = False

    def heard(self, shard: int, epoch: bytes) -> None:
        """A change was acknowledged in this epoch. If it is a new one, begin to repeat. Awaits nothing."""
        if self._epochs.setdefault(shard, epoch) == epoch or self._closed:
            return
        self._again.add(shard)
        task = self._tasks.get(shard)
        if task is None or task.done():
            self._tasks[shard] = kept(partial(self._run, shard), "cachebus-repeat")

    async def once(self, shard: int) -> None:
        """Repeat what the shard's present epoch lacks. After `L2Unavailable` the next try repeats the rest."""
        async with self._turns.setdefault(shard, asyncio.Lock()):
            while True:
                reply, clock = await self._ask(shard)
                try:
                    await self._repeat(shard, reply, clock)
                except _AnotherEpoch:
                    continue
                self._epochs[shard] = reply.epoch
                return

    async def _repeat(self, shard: int, reply: ProbeReply, clock: OtherClock) -> None:
        """Repeat what was acknowledged in other epochs since the present one was born. A primary that had been deposed
        acknowledged it, so it is lost."""
        with self._buffer.lost(shard, reply.epoch, born_s(reply.born_us, clock)) as plans:
            for plan in plans:
                if (await self._send(plan)).epoch != reply.epoch:
                    raise _AnotherEpoch

    async def _run(self, shard: int) -> None:
        pauses = Backoff()
        while shard in self._again:
            self._again.discard(shard)
            try:
                await self.once(shard)
            except L2Unavailable:
                self._again.add(shard)
                await asyncio.sleep(pauses.next_s())
                pauses.longer()
            except CacheBusError as error:  # such as ProtocolMismatch: the next call tries again
                logger.error("what a deposed primary has acknowledged can't be repeated: {}", error)
                return
            except Exception:
                self._again.add(shard)
                raise

    async def close(self, timeout_s: float) -> None:
        """Give the repetitions so long to end. What is left then is lost, and logged."""
        self._closed = True
        tasks = {task: shard for shard, task in self._tasks.items() if not task.done()}
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=timeout_s)
        finally:
            left = sorted(shard for task, shard in tasks.items() if not task.done())
            for task in tasks:
                task.cancel()
            if left:
                logger.error("closed before all was repeated that a deposed primary has acknowledged: shards {}", left)
        await ended(*tasks)
