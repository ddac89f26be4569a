"""Repeats in a shard's new epoch what this node has invalidated since that epoch was born (why: `resend_buffer`)."""

from __future__ import annotations

import asyncio

from cachebus.core.node import Node
from cachebus.writing.delivery import Delivery
from cachebus.writing.resend_buffer import ResendBuffer, born_s


class Repeating:
    """Those of one node. A full buffer takes longer to repeat than a lease lasts, so no probe waits for it."""

    def __init__(self, node: Node, delivery: Delivery, resend_buffer: ResendBuffer) -> None:
        self._node = node
        self._delivery = delivery
        self._resend_buffer = resend_buffer
        self._repeated = [shard.epoch for shard in node.shards]
        """By shard: the epoch in which all has been repeated that has to be."""
        self._moved = [asyncio.Event() for _ in node.shards]

    def done(self, shard: int) -> bool:
        """Whether nothing has to be repeated in the shard's present epoch any more."""
        return self._repeated[shard] == self._node.shards[shard].epoch

    def look(self, shard: int) -> None:
        """A probe was answered: see to it that all is repeated where the shard is in another epoch than before."""
        if not self.done(shard):
            self._moved[shard].set()

    async def step(self, shard: int) -> None:
        """Wait for another epoch, and repeat in it what has to be; `L2Unavailable`.

        What fails is tried again when the next probe has been answered. If yet another epoch begins meanwhile, all of
        it that was acknowledged before is repeated once more.
        """
        await self._moved[shard].wait()
        self._moved[shard].clear()
        epoch = self._node.shards[shard].epoch
        if not self.done(shard):
            await self._repeat(shard)
            self._repeated[shard] = epoch

    async def _repeat(self, shard: int) -> None:
        """Whatever acknowledged these had been deposed by then, so they may be lost."""
        node = self._node
        since_s = born_s(node.born_us[shard], node.server_clocks[shard])
        with self._resend_buffer.lost(shard, node.shards[shard].epoch, since_s) as plans:
            for plan in plans:
                await self._delivery.invalidate(plan)
                node.counters.invalidations_repeated += 1
