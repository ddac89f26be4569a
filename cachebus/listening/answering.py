"""Answers what this node is asked about keys: what it holds of one, for how long, and under which lease."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from cachebus.core.held import held
from cachebus.core.node import Node
from cachebus.core.ports import Bus, Store
from cachebus.errors import L2Unavailable
from cachebus.listening.inquiries import Inquiries
from cachebus.wire.inquiry import MOST_BYTES

LATE_S: Final = 1.0
"""Who asks waits no longer, so what is older is not answered any more."""


class Answering:
    """One node's answers: each is made, and sent, when its turn has come."""

    def __init__(self, node: Node, store: Store, bus: Bus, inquiries: Inquiries) -> None:
        self._node = node
        self._store = store
        self._bus = bus
        self._inquiries = inquiries

    async def step(self) -> None:
        """Wait for a question, and answer it. One that can't be sent is not sent again: a silent node says enough."""
        index, question, at_s = await self._inquiries.due()
        if self._node.clock() - at_s > LATE_S:
            return
        answer = held(self._node, index, question.l1).encode(question.id)
        if len(answer) > MOST_BYTES:  # of a node with an endless name
            return
        if not self._bus.store_publishes:
            await self._bus.publish(index, answer)
            return
        with suppress(L2Unavailable):
            await self._store.publish(index, answer, to=question.id.decode(), sharded=question.sharded)
