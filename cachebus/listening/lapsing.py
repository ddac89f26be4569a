"""Notices leases that run out while no probe is answered: nobody else would before L2 answers again."""

from __future__ import annotations

import asyncio

from cachebus.core.node import Node


class LapseWatch:
    """Looks for whoever wants to be told."""

    def __init__(self, node: Node, *, turn_s: float) -> None:
        """`turn_s`: how often it looks at least, where somebody wants to be told."""
        self._node, self._turn_s = node, turn_s

    async def step(self) -> None:
        """Wait until a lease may have run out, and look."""
        node = self._node
        now_s = node.clock()
        pause_s = min(self._turn_s, node.lapses.next_s(now_s) - now_s) if node.hooks.lease_lapsed else self._turn_s
        await asyncio.sleep(pause_s)
        now_s = node.clock()
        for shard in node.shards:
            node.lapses.look(shard.index, now_s)
