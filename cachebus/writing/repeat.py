"""Repeats in a shard's new epoch what this node has invalidated since that epoch was born (why: `resend_buffer`)."""

from __future__ import annotations

import asyncio

from cachebus.core.node import Node
from cachebus.writing.delivery import Delivery
from cachebus.writing.resend_buffer import ResendBuffer, born_s


class EpochResender:
    """Those of one node. A full buffer takes longer to repeat than a lease lasts, so no probe waits for it."""

    def __init__(self, node: Node, delivery: Delivery, resend_buffer: ResendBuffer) -> None:
        self._node = node
        self._delivery = delivery
        self._resend_buffer = resend_buffer
        self._repeated = [shard.epoch for shard in node.shards]
        """By shard: the epoch in which all has been repeated that has to be."""
        self._moved = [asyncio.Event() for _ in node.shards]

    def done(self, index: int) -> bool:
        """Whether nothing has to be repeated in the shard's present epoch any more."""
        return self._repeated[index] == self._node.shards[index].epoch

    def probe_answered(self, index: int) -> None:
        """A probe was answered: see to it that all is repeated where the shard is in another epoch than before."""
        if not self.done(index):
            self._moved[index].set()

    async def step(self, index: int) -> None:
        """Wait for another epoch, and repeat in it what has to be; `L2Unavailable`.

        What fails is tried again when the next probe has been answered. If yet another epoch begins meanwhile, all of
        it that was acknowledged before is repeated once more.
        """
        await self._moved[index].wait()
        self._moved[index].clear()
        epoch = self._node.shards[index].epoch
        if not self.done(index):
            await self._repeat(index)
            self._repeated[index] = epoch

    async def _repeat(self, index: int) -> None:
        """Whatever acknowledged these had been deposed by then, so they may be lost."""
        node = self._node
        since_s = born_s(node.born_us[index], node.server_clocks[index])
        with self._resend_buffer.lost(index, node.shards[index].epoch, since_s) as plans:
            for plan in plans:
                await self._delivery.invalidate(plan)
                node.counters.invalidations_repeated += 1
