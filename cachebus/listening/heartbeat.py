"""Keeps a node alive: one supervisor task owns the loops that tend its shards, and tidy its memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import NamedTuple

import anyio

from cachebus.base.clock import Clock
from cachebus.base.kept import keep, kept
from cachebus.base.log import logger
from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.listening.outages import Notices

NAME = "cachebus-heartbeat"
LOOP = "cachebus-heartbeat-loop"
STARTED_AT_ONCE = 16
"""Shards whose loops are started in one turn of an event loop that is late."""

Step = Callable[[], Coroutine[object, object, None]]
ShardStep = Callable[[int], Coroutine[object, object, None]]


class Loops(NamedTuple):
    """What is repeated for ever: each step in a task of its own, so that one that hangs holds up no other."""

    shards: int
    of_each_shard: Sequence[ShardStep]
    of_the_node: Sequence[Step]


class Heartbeat:
    """Repeats steps until it is stopped, whatever becomes of them."""

    def __init__(self, loops: Loops, notices: Notices, clock: Clock, *, interval_s: float) -> None:
        """`interval_s`: over so long the shards' loops are started, and so long a step that has failed pauses."""
        self._loops = loops
        self._notices = notices
        self._clock = clock
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self._lacks_loops = False

    def start(self) -> None:
        """Begin, in a task of its own."""
        self._lacks_loops = False
        self._task = kept(self._run, NAME)

    @property
    def has_ended(self) -> bool:
        """Whether somebody else has ended it or a loop of it, as who cancels all tasks does: then leases, of one shard
        or of all, are not renewed, and nothing connects again."""
        return self._task is not None and (self._task.done() or self._lacks_loops)

    @property
    def runs(self) -> bool:
        """Whether all its loops work."""
        return self._task is not None and not self.has_ended

    async def stop(self) -> None:
        """End all loops."""
        if self._task is not None:
            self.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def cancel(self) -> None:
        """Have all loops end, and wait for nothing."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        shards, each, alone = self._loops
        self._lacks_loops = False
        async with anyio.create_task_group() as group:
            for step in alone:
                group.start_soon(self._keep_up, step, name=LOOP)
            next_s = self._clock()
            for index in range(shards):
                for of_shard in each:
                    group.start_soon(self._keep_up, partial(of_shard, index), name=LOOP)
                # Not all at the same instants; but where the loop is late, the last must not wait for a turn of each.
                next_s += self._interval_s / shards
                if index + 1 < shards and (next_s > self._clock() or index % STARTED_AT_ONCE == 0):
                    await asyncio.sleep(max(0.0, next_s - self._clock()))

    async def _keep_up(self, step: Step) -> None:
        try:
            await keep(partial(self._for_ever, step), NAME)
        finally:  # it was cancelled: with all others, or alone
            self._lacks_loops = True

    async def _for_ever(self, step: Step) -> None:
        """Repeat a step whatever becomes of it: a bug in one must not end the others, and must be seen."""
        while True:
            try:
                await step()
            except L2Unavailable:
                await asyncio.sleep(self._interval_s * random.uniform(0.5, 1.0))
            except CacheBusError as error:  # as ProtocolMismatch, of what has no shard's turn
                self._notices.say("heartbeat", str(error), lasts=True)
                await asyncio.sleep(self._interval_s)
            except Exception:  # noqa: BLE001 (logged with its trace; the loops must go on)
                logger.exception("a step of the heartbeat failed; it goes on")
                await asyncio.sleep(self._interval_s)
