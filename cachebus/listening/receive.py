"""An event coming in: decode; in order? apply; else wake who catches up. Nothing here awaits."""

from __future__ import annotations

from cachebus.core.answers import Heard
from cachebus.core.node import Node
from cachebus.listening.attention import Attention
from cachebus.reading.waiting import Waiters
from cachebus.wire import event as events

ASK_EVERY_S = 1.0
"""How often a shard is probed at most for messages that can't be applied: they may come for ever."""


class Receiver:
    """Turns the bus's messages into state of the node."""

    def __init__(self, node: Node, waiters: Waiters, attention: Attention) -> None:
        self.node = node
        self._waiters = waiters
        self.attention = attention
        self._asked_s = [float("-inf")] * len(node.shards)

    def on_message(self, shard: int, message: bytes) -> None:
        """Take in one message of the bus; whatever its bytes are, this returns."""
        kind = message[:3]
        if kind == events.WAKE:
            self._waiters.wake(message[3:].decode(errors="replace"))
        elif kind == events.MAGIC:
            self._on_event(shard, message)
        else:  # of a later version, or damaged: then the probe finds the gap
            self.node.counters.messages_unknown += 1

    def _on_event(self, shard: int, message: bytes) -> None:
        view = self.node.shards[shard]
        if view.has_heard(*events.position_of(message)):
            self.node.counters.events_repeated += 1  # as all of this node's own, when the bus brings them
            return
        try:
            event, had_gap = events.decode(message), view.has_gap
            heard = self.node.hear(shard, event)
        except events.CorruptEvent:
            # It took the place of an event that the counter in L2 knows of: the probe finds the gap.
            self.node.counters.events_corrupt += 1
            self._have_asked(shard)
            return
        if heard is Heard.NEXT:
            self._observe_lag(shard, event)
            if had_gap and not view.has_gap:
                self.attention.nudge(shard)  # who waits for what was missing goes on
        elif heard is Heard.AHEAD:
            self.attention.nudge(shard)
        elif heard is Heard.FOREIGN:
            self._have_asked(shard)
        if event.asks_for_probe and heard in (Heard.NEXT, Heard.AHEAD):
            self.attention.prompt(shard)

    def _observe_lag(self, shard: int, event: events.Event) -> None:
        server_now_s = self.node.clock() + self.node.server_clocks[shard].offset_s
        self.node.counters.bus_lag.observe(server_now_s - event.published_us / 1e6)

    def _have_asked(self, shard: int) -> None:
        """Have one probe find out what a message that can't be applied stands for, as one of an unknown epoch."""
        now_s = self.node.clock()
        if now_s - self._asked_s[shard] >= ASK_EVERY_S:
            self._asked_s[shard] = now_s
            self.attention.nudge(shard)
