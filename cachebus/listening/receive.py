"""An event coming in: decode; in order? apply; else wake who catches up. Nothing here awaits."""

from __future__ import annotations

from cachebus.core.answers import Heard
from cachebus.core.node import Node
from cachebus.listening.attention import Attention
from cachebus.listening.heat import HotTalk
from cachebus.listening.inquiries import Inquiries
from cachebus.reading.waiting import Waiters
from cachebus.wire import event as events
from cachebus.wire.heat import HOT_NAMES, HOT_QUESTION
from cachebus.wire.inquiry import ANSWER, QUESTION

ASK_EVERY_S = 1.0
"""How often a shard is probed at most for messages that can't be applied: they may come for ever."""


class Receiver:
    """Turns the bus's messages into state of the node."""

    def __init__(self, node: Node, waiters: Waiters, attention: Attention, inquiries: Inquiries, hot: HotTalk) -> None:
        self.node = node
        self._waiters = waiters
        self.inquiries = inquiries
        self.hot = hot
        self.attention = attention
        self._asked_s = [float("-inf")] * len(node.shards)

    def on_message(self, index: int, message: bytes) -> None:
        """Take in one message of the bus; whatever its bytes are, this returns."""
        kind = message[:3]
        if kind == events.WAKE:
            self._waiters.wake(message[3:].decode(errors="replace"))
        elif kind == events.MAGIC:
            self._on_event(index, message)
        elif kind in (QUESTION, ANSWER):
            self.inquiries.take(index, message)
        elif kind in (HOT_QUESTION, HOT_NAMES):
            self.hot.take(index, message)
        else:  # of a later version, or damaged: then the probe finds the gap
            self.node.counters.messages_unknown += 1

    def _on_event(self, index: int, message: bytes) -> None:
        shard = self.node.shards[index]
        if shard.has_heard(*events.position_of(message)):
            self.node.counters.events_repeated += 1  # as all of this node's own, when the bus brings them
            return
        try:
            event, had_gap = events.decode(message), shard.has_gap
            heard = self.node.hear(index, event)
        except events.CorruptEvent:
            # It took the place of an event that the counter in L2 knows of: the probe finds the gap.
            self.node.counters.events_corrupt += 1
            self._have_asked(index)
            return
        if heard is Heard.NEXT:
            self._observe_lag(index, event)
            if had_gap and not shard.has_gap:
                self.attention.nudge(index)  # who waits for what was missing goes on
        elif heard is Heard.AHEAD:
            self.attention.nudge(index)
        elif heard is Heard.FOREIGN:
            self._have_asked(index)
        if event.asks_for_probe and heard in (Heard.NEXT, Heard.AHEAD):
            self.attention.prompt(index)

    def _observe_lag(self, index: int, event: events.Event) -> None:
        self.node.counters.bus_lag.observe(self.node.server_now_s(index) - event.published_us / 1e6)

    def _have_asked(self, index: int) -> None:
        """Have one probe find out what a message that can't be applied stands for, as one of an unknown epoch."""
        now_s = self.node.clock()
        if now_s - self._asked_s[index] >= ASK_EVERY_S:
            self._asked_s[index] = now_s
            self.attention.nudge(index)
