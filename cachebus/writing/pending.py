"""Invalidations that L2 could not be told of: kept in memory, in order, until it can be.

Only invalidations wait here, never sets, adds or counters. To say a second time that something was replaced is safe,
whatever has happened in between (at worst it costs a load), so an invalidation is sent again though nobody knows
whether it ran. All that waits is gone with the process.

1. Each shard has a queue of its own, delivered by a task of its own, with some room of its own: one that is out of
   reach holds up no other, and fills the room of none.
2. Until they are delivered this node believes nothing of what they address: it serves, admits and fills nothing of it,
   whoever vouches for it.
3. Nothing that this node writes overtakes them: a `set` sent first would be removed by an older invalidation sent after
   it. So a write waits for the queue of its shard, as long as L2 may take to answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import islice

from cachebus.base.backoff import Backoff
from cachebus.base.kept import kept
from cachebus.base.log import logger
from cachebus.core.node import Node
from cachebus.core.ports import Change, Store
from cachebus.errors import L2Unavailable
from cachebus.keys.plan import Plan

BATCH = 128
PAUSE_FIRST_S = 0.01
PAUSE_MAX_S = 0.5
OWN = 0.1
"""The part of the room that is divided among all shards, so that none fills the room of the others: more, where one
each takes more."""
LOOK_S = 0.02
"""How often to look whether the connection is there again."""

Deliver = Callable[[Plan], Coroutine[object, object, Change]]


class PendingInvalidation:
    """One invalidation that waits."""

    __slots__ = ("delivered", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.delivered: asyncio.Future[Change] = asyncio.get_running_loop().create_future()


class _Room:
    """How many may wait: some of each shard in any case, and some more of them all."""

    def __init__(self, most: int, shards: int) -> None:
        self.most = most
        self._own = max(int(OWN * most / shards), min(1, most // shards))
        self._common = most - self._own * shards
        self._common_taken = 0

    def take(self, queued: int) -> bool:
        """Take room for one more of a shard of which so many wait; False where there is none."""
        beyond = queued >= self._own
        if beyond and self._common_taken >= self._common:
            return False
        self._common_taken += beyond
        return True

    def give_back(self, left: int) -> None:
        """One has left the queue of a shard of which so many wait still."""
        self._common_taken -= left >= self._own

    def empty(self) -> None:
        """All have left."""
        self._common_taken = 0


class Pending:
    """What waits on one node, a queue for each shard."""

    def __init__(self, node: Node, store: Store, deliver: Deliver, most: int, patience_s: float) -> None:
        """`deliver`: tells everybody of one; `L2Unavailable`. `most`: how many may wait. `patience_s`: how long L2 may
        take to answer."""
        self._node = node
        self._store = store
        self._deliver = deliver
        self._room = _Room(most, len(node.shards))
        self._patience_s = patience_s
        self._queues: dict[int, deque[PendingInvalidation]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """By shard: what delivers its queue, or did so last."""

    @property
    def depth(self) -> int:
        """How many wait."""
        return sum(map(len, self._queues.values()))

    # -- for who writes -------------------------------------------------------------------------------------------

    def holds_up(self, index: int) -> bool:
        """Whether any wait for this shard, which must go first."""
        return index in self._queues

    def add(self, plan: Plan) -> PendingInvalidation | None:
        """Queue one, and believe nothing of what it addresses; None when there is no room."""
        if not self._room.take(len(self._queues.get(plan.shard, ()))):
            return None
        waiting, is_first = PendingInvalidation(plan), not self._queues
        self._queues.setdefault(plan.shard, deque()).append(waiting)
        self._node.block(plan.shard, plan.keys, plan.scopes)
        self._see_to(plan.shard)
        if is_first:
            logger.warning("L2 is out of reach: invalidations wait in a queue of at most {}", self._room.most)
        return waiting

    def _see_to(self, index: int) -> None:
        """Have the shard's queue delivered, unless it is: whatever has ended that, all writes wait for it."""
        task = self._tasks.get(index)
        if task is None or task.done():
            self._tasks[index] = kept(partial(self._deliver_all, index), "cachebus-pending")

    async def delivered(self, waiting: PendingInvalidation) -> Change | None:
        """Where in history one came to stand, if it gets there while L2 may be expected to answer."""
        if self._store.reaches(waiting.plan.shard):
            await asyncio.wait([waiting.delivered], timeout=self._patience_s)
        return waiting.delivered.result() if waiting.delivered.done() else None

    async def make_way(self, index: int) -> None:
        """Wait until none waits for the shard; `L2Unavailable` when that takes longer than L2 may take to answer."""
        if index not in self._queues:
            return
        self._see_to(index)
        if await self.delivered(self._queues[index][-1]) is None:
            raise L2Unavailable("earlier invalidations of this node wait for L2, and go first")

    # -- delivery -------------------------------------------------------------------------------------------------

    async def _deliver_all(self, index: int) -> None:
        """Deliver a shard's queue, whatever becomes of other shards."""
        pauses = Backoff(PAUSE_FIRST_S, PAUSE_MAX_S)
        while index in self._queues:
            if not self._store.reaches(index):
                await asyncio.sleep(LOOK_S)
                continue
            try:
                await self._deliver_some(index)
                pauses.reset()
            except L2Unavailable:
                await asyncio.sleep(pauses.next_s())
                pauses.longer()
            except Exception:  # noqa: BLE001 (as ProtocolMismatch; logged with its trace, and tried again)
                logger.exception("pending invalidations can't be delivered")
                await asyncio.sleep(PAUSE_MAX_S)
        if not self._queues:
            logger.warning("all pending invalidations are delivered")

    async def _deliver_some(self, index: int) -> None:
        """Deliver some, all under way at once; those that failed stay, and the first failure is raised."""
        queue = self._queues[index]
        some = list(islice(queue, BATCH))
        answers = await asyncio.gather(*(self._deliver(waiting.plan) for waiting in some), return_exceptions=True)
        failed = None
        for waiting, answer in zip(some, answers, strict=True):
            if isinstance(answer, BaseException):
                failed = failed or answer
            else:
                queue.remove(waiting)  # the first, or near it
                self._room.give_back(len(queue))
                self._release(waiting, answer)
        if not queue:
            del self._queues[index]
        if failed is not None:
            raise failed

    def _release(self, waiting: PendingInvalidation, change: Change) -> None:
        self._node.unblock(waiting.plan.shard, waiting.plan.keys, waiting.plan.scopes)
        self._node.counters.pending_delivered += 1
        if not waiting.delivered.done():
            waiting.delivered.set_result(change)

    # -- the end --------------------------------------------------------------------------------------------------

    async def drain(self, timeout_s: float | None) -> bool:
        """Wait until none waits any more; False when `timeout_s` is over before."""
        for index in self._queues:
            self._see_to(index)
        if self._queues:
            await asyncio.wait([self._tasks[index] for index in self._queues], timeout=timeout_s)
        return not self._queues

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
        for queue in self._queues.values():
            for waiting in queue:
                waiting.delivered.cancel()
        self._queues.clear()
        self._room.empty()
