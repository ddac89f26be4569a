"""An event coming in: decode, in order? apply; else catch up from the log; and where the log has gone, begin anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from loguru import logger

from cachebus.base.clock import Clock
from cachebus.core.node import Node
from cachebus.core.ports import LogEntry, Store
from cachebus.core.shard import Heard
from cachebus.reading.waiting import Waiters
from cachebus.wire import event as events

LOG_BATCH_FIRST, LOG_BATCH_MAX = 16, 1000
LOG_BATCH_BYTES = 4 * 1024 * 1024
"""How many entries of the log to ask for, at first and at most, and about how many bytes: a reply comes whole."""
ASK_EVERY_S = 1.0


def next_count(count: int, entries: Sequence[LogEntry]) -> int:
    """How many entries to ask for after `count` brought these: as many as fit if all are as large as the largest of
    them, at most twice as many, and one at least, so that catching up goes on whatever they take."""
    largest = max((len(entry.message) for entry in entries), default=0)
    return max(1, min(2 * count, LOG_BATCH_BYTES // max(largest, 1), LOG_BATCH_MAX))


class Receiver:
    """Turns messages of the bus, and entries of the log, into state of the node."""

    def __init__(
        self,
        node: Node,
        store: Store,
        waiters: Waiters,
        nudge: Callable[[int], None],
        clock: Clock,
        prompt: Callable[[int], None],
    ) -> None:
        self._node = node
        self._store = store
        self._waiters = waiters
        self._nudge = nudge
        self._prompt = prompt
        self._clock = clock
        self._asked_s = [float("-inf")] * len(node.shards)

    def on_message(self, shard: int, message: bytes) -> None:
        """One message of the bus; whatever its bytes are, this returns."""
        kind = message[:3]
        if kind == events.WAKE:
            self._waiters.wake(message[3:].decode(errors="replace"))
            return
        counters = self._node.counters
        if kind != events.MAGIC:
            counters.messages_unknown += 1  # of a later version, or damaged: then the probe finds the gap
            return
        if self._node.shards[shard].has_heard(*events.place(message)):
            counters.events_repeated += 1  # as all of this node's own, when the bus brings them
            return
        try:
            event = events.decode(message)
            heard = self._node.hear(shard, event)
        except events.CorruptEvent:
            # It took the place of an event that the counter in L2 knows of: the probe finds the gap.
            counters.events_corrupt += 1
            self._ask(shard)
            return
        if heard is Heard.NEXT:
            counters.bus_lag.observe(
                self._clock() + self._node.server_clocks[shard].offset_s - event.published_us / 1e6
            )
        elif heard is Heard.AHEAD:
            self._nudge(shard)
        elif heard is Heard.FOREIGN:
            self._ask(shard)
        if event.asks_for_probe and heard in (Heard.NEXT, Heard.AHEAD):
            self._prompt(shard)

    def _ask(self, shard: int) -> None:
        """Have one probe find out what a message that can't be applied stands for, as one of an unknown epoch: at most
        one a second, as such messages may come for ever."""
        now_s = self._clock()
        if now_s - self._asked_s[shard] >= ASK_EVERY_S:
            self._asked_s[shard] = now_s
            self._nudge(shard)

    async def catch_up(self, shard: int) -> None:
        """Apply what the bus has not brought, from the log; `L2Unavailable`."""
        view = self._node.shards[shard]
        self._node.counters.catch_ups += 1
        count = LOG_BATCH_FIRST
        while view.has_gap:
            epoch, after = view.epoch, view.applied
            entries = await self._store.log(shard, after, count)
            if view.epoch != epoch:
                return
            if view.flooded or not self._replay(shard, entries) or view.applied == after:
                await self.begin(shard, "gap")
                return
            count = next_count(count, entries)
            await asyncio.sleep(0)

    def _replay(self, shard: int, entries: list[LogEntry]) -> bool:
        """Apply entries in order; False at the first that is missing, unreadable or of another epoch."""
        view = self._node.shards[shard]
        for seq, message in entries:
            if 0 <= seq <= view.applied:
                continue  # the bus was faster
            if seq != view.applied + 1:
                return False  # trimmed: the stream skips silently, so contiguity is ours to check
            try:
                event = events.decode(message)
                if event.seq != seq or event.epoch != view.epoch:
                    return False
                self._node.hear(shard, event)
            except events.CorruptEvent:
                self._node.counters.events_corrupt += 1
                return False
            if event.asks_for_probe:
                self._prompt(shard)
        return True

    async def begin(self, shard: int, cause: str) -> None:
        """Drop what is held of the shard, and begin from where L2 is now, by its answer; `L2Unavailable`."""
        node = self._node
        sent_at_s, asked = self._clock(), node.shards[shard].asking()
        reply = await self._store.probe(shard, node.caller(shard), with_invalidated=True)
        node.answered(shard, reply, sent_at_s, self._clock())
        node.begin_epoch(shard, reply, sent_at_s, cause, asked)
        logger.info("shard {}: began anew at {}:{} ({})", shard, reply.epoch.decode(), reply.seq, cause)
