"""What to do about a gap: wait a moment; read the log; and where the log has gone, begin anew."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress

from cachebus.base.log import logger
from cachebus.core.node import Node
from cachebus.core.ports import LogEntry, Store
from cachebus.listening.attention import Attention
from cachebus.wire import event as events

LOG_BATCH_FIRST, LOG_BATCH_MAX = 16, 1000
LOG_BATCH_BYTES = 4 * 1024 * 1024
"""How many entries of the log to ask for, at first and at most, and about how many bytes: a reply comes whole."""


def next_count(count: int, entries: Sequence[LogEntry]) -> int:
    """How many entries to ask for after `count` brought these: as many as fit if all are as large as the largest of
    them, at most twice as many, and one at least, so that catching up goes on whatever they take."""
    largest = max((len(entry.message) for entry in entries), default=0)
    return max(1, min(2 * count, LOG_BATCH_BYTES // max(largest, 1), LOG_BATCH_MAX))


class CatchUp:
    """Brings a node what the bus has not."""

    def __init__(self, node: Node, store: Store, attention: Attention, *, grace_s: float) -> None:
        """`grace_s`: how long a gap is given to close by itself; 0 is not at all."""
        self._node = node
        self._store = store
        self._attention = attention
        self._grace_s = grace_s

    async def heal(self, index: int) -> None:
        """Give a gap the time that a reordered message needs, then read the log; `L2Unavailable`."""
        shard = self._node.shards[index]
        if shard.has_gap and self._grace_s:
            await self._be_patient(index)
        if shard.has_gap:
            await self.read_log(index)

    async def _be_patient(self, index: int) -> None:
        """Wait for what is missing; who is asked to probe at once goes on as soon as it has come."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace_s * random.uniform(0.8, 1.2)):
                while self._node.shards[index].has_gap:
                    await self._attention.wait_for_next(index)

    async def read_log(self, index: int) -> None:
        """Apply from the log what is missing; begin anew where the log lacks any of it. `L2Unavailable`."""
        shard = self._node.shards[index]
        self._node.counters.catch_ups += 1
        count = LOG_BATCH_FIRST
        while shard.has_gap:
            epoch, after = shard.epoch, shard.applied
            entries = await self._store.log(index, after, count)
            if shard.epoch != epoch:
                return
            if shard.flooded or not self._replay(index, entries) or shard.applied == after:
                await self.begin_epoch(index, "gap")
                return
            count = next_count(count, entries)
            await asyncio.sleep(0)

    def _replay(self, index: int, entries: list[LogEntry]) -> bool:
        """Apply entries in order; False at the first that is missing, unreadable or of another epoch."""
        shard = self._node.shards[index]
        for seq, message in entries:
            if 0 <= seq <= shard.applied:
                continue  # the bus was faster
            if seq != shard.applied + 1:
                return False  # trimmed: the stream skips silently, so contiguity is ours to check
            try:
                event = events.decode(message)
                if event.seq != seq or event.epoch != shard.epoch:
                    return False
                self._node.hear(index, event)
            except events.CorruptEvent:
                self._node.counters.events_corrupt += 1
                return False
            if event.asks_for_probe:
                self._attention.prompt(index)
        return True

    async def begin_epoch(self, index: int, cause: str) -> None:
        """Drop what is held of the shard, and begin from where L2 is now, with its invalidated scopes; `L2Unavailable`.

        `cause`: "start", "epoch" (L2 has begun another) or "gap" (the log has gone).
        """
        node = self._node
        sent_at_s, asked = node.clock(), node.shards[index].begin_asking()
        reply = await self._store.probe(index, node.caller(index), with_invalidated=True)
        node.answered(index, reply, sent_at_s, node.clock())
        node.begin_epoch(index, reply, sent_at_s, cause, asked)
        logger.info("shard {}: began anew at {}:{} ({})", index, reply.epoch.decode(), reply.seq, cause)
