"""What a node of a run is told at its start, and the orders that it takes afterwards."""

from __future__ import annotations

from typing import Final

import msgspec

QUIET: Final = "quiet"
"""Begin nothing more, and say READY once every lease is live, NOT_READY after some seconds, or what is left over."""
READY: Final = "ready"
NOT_READY: Final = "not ready"
SETTLE: Final = "settle"
"""Invalidate the items of these numbers, of whose last write it is not known whether it was told to the cache."""
LOOK: Final = "look"
"""Write down what L1 and L2 hold of every item."""
STALL: Final = "stall"
"""Hold the event loop for so many seconds."""
SLOW: Final = "slow"
"""For so many seconds take longer over each load than its lease lasts."""
SOUR: Final = "sour"
"""For so many seconds the source fails this node."""
STUCK: Final = "stuck"
"""For so many seconds the source answers this node nothing at all."""
GUARD: Final = "guard"
"""Write behind a guard, after so many seconds in it, and leave it then."""
MUTE: Final = "mute"
"""For so many seconds publish nothing (where the node publishes, and not L2)."""
TWICE: Final = "twice"
"""For so many seconds publish every event twice."""
SWAP: Final = "swap"
"""For so many seconds publish events some at a time, the last one first."""
STOP: Final = "stop"


class Job(msgspec.Struct, frozen=True):
    """All that a node process needs to know. Holds credentials: never for an argument list or a log."""

    node: int
    """From 1 on."""
    life: int
    """From 1 on: one more each time that it was killed and started anew."""
    nodes: int
    directory: str
    url: str
    namespace: str
    bound_s: float
    largest_bound_s: float
    """Of all nodes."""
    rate: float
    """Reads a second; 0: as fast as it goes."""
    write_rate: float
    seed: int
    other_url: str = ""
    """Of the second cache; without it there is none."""
    kafka: str = ""
    """Where Kafka is, if it carries the events."""
    roads: dict[int, int] = {}
    """By the port of a server that is reached by a proxy of its own: the proxy's."""

    @property
    def name(self) -> str:
        """What its logs are called by."""
        return name_of(self.node, self.life)


def name_of(node: int, life: int) -> str:
    """What the logs of a node's life are called by."""
    return f"{node}.{life}"


decode_job = msgspec.json.Decoder(Job).decode
