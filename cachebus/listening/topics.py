"""Whether other nodes of the namespace hear events by another topic of Kafka, and so nothing of this one's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping
from typing import Final

from cachebus.core.answers import NO_EPOCH
from cachebus.core.node import Node
from cachebus.core.ports import TOPIC, NodeRow, Store
from cachebus.listening.outages import Notices

LOOK_EVERY_S: Final = 60.0
SHARD: Final = 0
"""Each node has a row in each shard: those of one are enough."""


class OtherTopics:
    """Looks at the nodes' rows now and then, and says once what it finds."""

    def __init__(self, node: Node, store: Store, notices: Notices) -> None:
        self._node = node
        self._store = store
        self._notices = notices
        self.trouble = ""
        """What is wrong, in words."""
        self.count = 0
        """The nodes that hear by another topic."""

    async def step(self) -> None:
        """Wait, and look; `L2Unavailable`."""
        await asyncio.sleep(LOOK_EVERY_S * random.uniform(0.5, 1.0))
        own = dict(self._node.about.more).get(TOPIC)
        if own is None or self._node.shards[SHARD].epoch == NO_EPOCH:
            return
        reply = await self._store.nodes(SHARD, self._node.caller(SHARD))
        others = elsewhere(own, reply.rows)
        self.count = len(others)
        self.trouble = (
            f"{len(others)} nodes of this namespace hear events by another Kafka topic than {own}, as {min(others)}: "
            "they are told of this one's invalidations by their probes alone, and this one of theirs"
            if others
            else ""
        )
        self._notices.say("topics", self.trouble)


def elsewhere(own: str, rows: Mapping[str, NodeRow]) -> Collection[str]:
    """The nodes that live and hear by another topic. The latest row tells what time it is."""
    now_us = max((row.at_us for row in rows.values()), default=0)
    return {
        name
        for name, row in rows.items()
        if now_us - row.at_us <= row.about.bound_ms * 1000 and dict(row.about.more).get(TOPIC, own) != own
    }
