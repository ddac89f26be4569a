"""Invalidations that L2 could not be told of: kept in memory, in order, until it can be.

Only invalidations wait here, never sets, adds or counters: to say a second time that something was replaced is safe,
whatever has happened in between (at worst it costs a load), so one of which nobody knows whether it ran is sent again.
They are gone with the process.

Each shard has a line of its own, delivered by a task of its own, and some room of its own: one that is away holds up no
other, and fills the room of none.

Until they are delivered this node withholds what they address (`Blocked`): it serves, admits and fills nothing of it,
whoever vouches for it. And nothing that this node writes may overtake them: a `set` sent first would be removed by an
older invalidation sent after it. So a write waits for the queue of its shard, as long as L2 may take to answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice

from loguru import logger

from cachebus.base.backoff import Backoff
from cachebus.core.blocked import Blocked
from cachebus.core.node import Node
from cachebus.core.ports import Change, Store
from cachebus.errors import L2Unavailable
from cachebus.keys.plan import Plan

BATCH = 128
PAUSE_FIRST_S = 0.01
PAUSE_MAX_S = 0.5
OWN = 0.1
"""The part of the queue that is divided among all shards, so that none fills the room of the others: more, where one
each takes more."""
LOOK_S = 0.02
"""How often to look whether the connection is there again."""


class Waiting:
    """One invalidation that waits."""

    __slots__ = ("delivered", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.delivered: asyncio.Future[Change] = asyncio.get_running_loop().create_future()


class Pending:
    """The queue of one node, a line for each shard."""

    def __init__(self, node: Node, store: Store, most: int, patience_s: float) -> None:
        self._node = node
        self._store = store
        self._most = most
        self._own = max(int(OWN * most / len(node.shards)), min(1, most // len(node.shards)))
        """How many of each shard have room in any case."""
        self._common = most - self._own * len(node.shards)
        """How many more of them all have."""
        self._beyond = 0
        """How many of these there are."""
        self._patience_s = patience_s
        self._lines: dict[int, deque[Waiting]] = {}
        self._blocked = Blocked()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """By shard: what delivers its line, while there is one."""
        self.deliver: Callable[[Plan], Awaitable[Change]]
        """Tells L2, and this node, of one."""

    @property
    def depth(self) -> int:
        """How many wait."""
        return sum(map(len, self._lines.values()))

    def holds_up(self, shard: int) -> bool:
        """Whether any wait for this shard, which must go first."""
        return shard in self._lines

    def add(self, plan: Plan) -> Waiting | None:
        """Queue one, and withhold what it addresses; None when there is no room."""
        line = self._lines.get(plan.shard, ())
        beyond = len(line) >= self._own
        if beyond and self._beyond >= self._common:
            return None
        self._beyond += beyond
        waiting = Waiting(plan)
        self._lines.setdefault(plan.shard, deque()).append(waiting)
        self._blocked.add(plan.keys, plan.scopes)
        self._node.blocked = self._blocked
        if plan.shard not in self._tasks:
            if not self._tasks:
                logger.warning("L2 is out of reach: invalidations wait in a queue of at most {}", self._most)
            self._tasks[plan.shard] = asyncio.create_task(self._run(plan.shard), name="cachebus-pending")
        return waiting

    async def delivered(self, waiting: Waiting) -> Change | None:
        """Where in history one came to stand, if it gets there while L2 may be expected to answer."""
        if self._store.reaches(waiting.plan.shard):
            await asyncio.wait([waiting.delivered], timeout=self._patience_s)
        return waiting.delivered.result() if waiting.delivered.done() else None

    async def make_way(self, shard: int) -> None:
        """Wait until none waits for the shard; `L2Unavailable` when that takes longer than L2 may take to answer."""
        if shard not in self._lines:
            return
        if await self.delivered(self._lines[shard][-1]) is None:
            raise L2Unavailable("earlier invalidations of this node wait for L2, and go first")

    async def drain(self, timeout_s: float | None) -> bool:
        """Wait until none waits any more; False when `timeout_s` is over before."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=timeout_s)
        return not self._lines

    async def close(self, timeout_s: float) -> None:
        """Let those that wait be delivered within `timeout_s`; what is left then is lost."""
        await self.drain(timeout_s)
        tasks = list(self._tasks.values())
        self.abandon()
        if tasks:
            await asyncio.wait(tasks)

    def abandon(self) -> None:
        """Give up what still waits: count and log it. Awaits nothing."""
        for task in self._tasks.values():
            task.cancel()
        lost = self.depth
        if not lost:
            return
        self._node.counters.pending_lost += lost
        logger.error("{} invalidations were never delivered: what they replaced may live in L2 by its TTL", lost)
        for line in self._lines.values():
            for waiting in line:
                waiting.delivered.cancel()
        self._lines.clear()
        self._beyond = 0

    async def _run(self, shard: int) -> None:
        """Deliver a shard's line, whatever becomes of other shards."""
        pauses = Backoff(PAUSE_FIRST_S, PAUSE_MAX_S)
        try:
            while shard in self._lines:
                if not self._store.reaches(shard):
                    await asyncio.sleep(LOOK_S)
                    continue
                try:
                    await self._batch(shard)
                    pauses.reset()
                except L2Unavailable:
                    await asyncio.sleep(pauses.next_s())
                    pauses.longer()
                except Exception:  # noqa: BLE001 (as ProtocolMismatch; logged with its trace, and tried again)
                    logger.exception("pending invalidations can't be delivered")
                    await asyncio.sleep(PAUSE_MAX_S)
        finally:
            del self._tasks[shard]
        if not self._lines:
            logger.info("all pending invalidations are delivered")

    async def _batch(self, shard: int) -> None:
        """Deliver some, all under way at once; those that failed stay, and the first failure is raised."""
        line = self._lines[shard]
        some = list(islice(line, BATCH))
        answers = await asyncio.gather(*(self.deliver(waiting.plan) for waiting in some), return_exceptions=True)
        failed = None
        for waiting, answer in zip(some, answers, strict=True):
            if isinstance(answer, BaseException):
                failed = failed or answer
            else:
                line.remove(waiting)  # the first, or near it
                self._beyond -= len(line) >= self._own
                self._release(waiting, answer)
        if not line:
            del self._lines[shard]
        if failed is not None:
            raise failed

    def _release(self, waiting: Waiting, change: Change) -> None:
        self._blocked.remove(waiting.plan.keys, waiting.plan.scopes)
        if not self._blocked:
            self._node.blocked = None
        self._node.counters.pending_delivered += 1
        if not waiting.delivered.done():
            waiting.delivered.set_result(change)
