"""Whether the other nodes of the namespace hear this one's events, and this one theirs, where they go over Kafka."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Final

from cachebus.core.answers import NO_EPOCH
from cachebus.core.hearing import KAFKA, KEYS, TOPIC, Hearing, beside
from cachebus.core.node import Node
from cachebus.core.ports import Bus, NodeRow, Store
from cachebus.listening.outages import Notices

CHECK_EVERY_S: Final = 60.0
SHARD: Final = 0
"""Each node has a row in each shard: those of one are enough."""
WHY: Final[Mapping[str, str]] = {
    TOPIC: "hear events by another Kafka topic than {own.topic}",
    KAFKA: "hear events by another Kafka cluster than {own.kafka}: their kafka_bootstrap_servers name other brokers",
    KEYS: "have other keys of events (kafka_events_key), and pass over what this one signs, or it what they do",
}


class Peers:
    """Says in the node's row where it hears events, looks at the others' now and then, and says once what it finds."""

    def __init__(self, node: Node, store: Store, bus: Bus, notices: Notices, *, pause_s: float) -> None:
        """`pause_s`: so often it looks whether the bus knows better where it is."""
        self._node = node
        self._store = store
        self._bus = bus
        self._notices = notices
        self._pause_s = pause_s
        self.trouble = ""
        """What is wrong, in words."""
        self.count = 0
        """The nodes between which and this one something is."""
        self._say()

    async def introduce(self) -> None:
        """Wait, and have the node's row say where it hears events by now: of which Kafka, the first broker tells."""
        await asyncio.sleep(self._pause_s)
        self._say()

    def _say(self) -> None:
        hearing, about = self._bus.hearing, self._node.about
        said = () if hearing is None else hearing.in_row
        self._node.about = about._replace(more=(*said, *beside(about.more)))

    async def check(self) -> None:
        """Wait, and check; `L2Unavailable`."""
        await asyncio.sleep(CHECK_EVERY_S * random.uniform(0.5, 1.0))
        own = Hearing.of(self._node.about.more)
        if own is None or self._node.shards[SHARD].epoch == NO_EPOCH:
            return
        reply = await self._store.nodes(SHARD, self._node.caller(SHARD))
        others = out_of_hearing(own, reply.rows)
        self.count = len(others)
        self.trouble = (
            f"{len(others)} nodes of this namespace {_why(own, others)}, as {min(others)}: "
            "they are told of this one's invalidations by their probes alone, or this one of theirs"
            if others
            else ""
        )
        self._notices.say("peers", self.trouble)


def _why(own: Hearing, others: Mapping[str, str]) -> str:
    found = set(others.values())
    return ", or ".join(why.format(own=own) for barrier, why in WHY.items() if barrier in found)


def out_of_hearing(own: Hearing, rows: Mapping[str, NodeRow]) -> Mapping[str, str]:
    """The nodes that live and do not hear this one, or it them, and what is between them. The latest row tells what
    time it is."""
    now_us = max((row.at_us for row in rows.values()), default=0)
    found = {}
    for name, row in rows.items():
        theirs = Hearing.of(row.about.more)
        if theirs is not None and now_us - row.at_us <= row.about.bound_ms * 1000 and (why := own.barrier(theirs)):
            found[name] = why
    return found
