"""The probe: asks L2 where a shard stands, renews the lease, and has made up for what is missing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import partial

from cachebus.base.clock import boottime_s, monotonic
from cachebus.base.log import logger
from cachebus.core.answers import NO_EPOCH, Probed
from cachebus.core.node import Node
from cachebus.core.ports import Store
from cachebus.listening.catch_up import CatchUp
from cachebus.listening.fleet import FleetWatch

BEGINNINGS_MAX = 256
"""Shards of one primary of which a node reads at once where they are."""
SUSPENDED_S = 0.1
"""The clock that counts while the machine sleeps may run ahead of the other by so much, without a suspension."""


class Prober:
    """Asks about every shard of a node, and never two questions about one at once: the older answer would lead back."""

    def __init__(
        self, node: Node, store: Store, catch_up: CatchUp, fleet: FleetWatch, judge_guards: Callable[[int], object]
    ) -> None:
        """`judge_guards`: looks whether the shard has begun another epoch, which has lost guards."""
        self._node = node
        self._store = store
        self._catch_up = catch_up
        self._fleet = fleet
        self._judge_guards = judge_guards
        self._turns = [asyncio.Lock() for _ in node.shards]
        self._beginnings = defaultdict[Hashable, asyncio.Semaphore](partial(asyncio.Semaphore, BEGINNINGS_MAX))
        """By primary: one that hangs keeps no other waiting."""
        self._asleep_s = boottime_s() - monotonic()
        """How long the machine has been suspended since it was started."""

    async def probe(self, index: int) -> None:
        """Ask where the shard stands, renew the lease or catch up; `L2Unavailable`."""
        async with self._turns[index]:
            self._notice_suspension()
            if self._node.shards[index].epoch == NO_EPOCH:
                await self.begin(index, "start")
            else:
                await self._ask(index)
            self._judge_guards(index)

    async def reach(self, index: int) -> None:
        """Connect to the shard's primary if need be; `L2Unavailable`. Paces itself."""
        await self._store.reach(index)

    def refuses(self, index: int, why: str) -> bool:
        """A probe has failed. Whether it was refused, so that the server is there; what that tells of it is noted."""
        self._fleet.refused(index, why)
        return self._store.reaches(index)

    async def heal(self, index: int) -> None:
        """Make up for a gap that was heard of; `L2Unavailable`."""
        async with self._turns[index]:
            await self._catch_up.heal(index)

    async def begin(self, index: int, cause: str) -> None:
        """Read where the shard is; not of too many at once, as each takes several steps, and all wait in one line."""
        async with self._beginnings[self._store.lies_at(index)]:
            await self._catch_up.begin_epoch(index, cause)

    async def _ask(self, index: int) -> None:
        node = self._node
        sent_at_s = node.clock()
        node.shards[index].probe_sent()
        reply = await self._store.probe(index, node.caller(index), with_invalidated=False)
        now_s = node.clock()
        node.counters.l2_latency.observe(now_s - sent_at_s)
        probed = node.probed(index, reply, sent_at_s, now_s)
        self._fleet.probed(index, reply)
        if probed is Probed.FOREIGN:
            await self.begin(index, "epoch")
        elif probed is Probed.BEHIND:
            await self._catch_up.heal(index)

    def _notice_suspension(self) -> None:
        """A suspended machine's monotonic clock stands still: what the lease promised has long run out."""
        asleep_s = boottime_s() - monotonic()
        if asleep_s - self._asleep_s > SUSPENDED_S:
            logger.warning("this machine was suspended for {:.1f} s: leases are void", asleep_s - self._asleep_s)
            for index in range(len(self._node.shards)):
                self._node.void(index, "suspended")
        self._asleep_s = asleep_s
