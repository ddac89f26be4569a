"""What a node process is given at its start (a `VerifyJob`), and the orders that it takes afterwards."""

from __future__ import annotations

from typing import Final

import msgspec

QUIET: Final = "quiet"
"""Begin nothing more. The answer is READY once every shard has its lease, NOT_READY if one has none in time, or the
tasks and sockets that the load has left."""
READY: Final = "ready"
NOT_READY: Final = "not ready"
SETTLE: Final = "settle"
"""Invalidate the items of these numbers again: nobody knows whether their last invalidation happened."""
LOOK: Final = "look"
"""Log what L1 and L2 hold of every item."""
STALL: Final = "stall"
"""Hold the event loop for so many seconds."""
SLOW: Final = "slow"
"""For so many seconds, many loads last longer than their lease."""
SOUR: Final = "sour"
"""For so many seconds, every load of this node fails."""
STUCK: Final = "stuck"
"""For so many seconds, no load of this node ends."""
GUARD: Final = "guard"
"""Enter a write guard, commit after so many seconds in it, and abandon the guard."""
MUTE: Final = "mute"
"""For so many seconds, publish nothing. This and the next two need Kafka: over Redis it is L2 that publishes."""
TWICE: Final = "twice"
"""For so many seconds, publish every event twice."""
SWAP: Final = "swap"
"""For so many seconds, publish events in groups, each in reverse order."""
STOP: Final = "stop"


class VerifyJob(msgspec.Struct, frozen=True):
    """All that a node process needs to know. Holds credentials, so it is never put into an argument list or a log."""

    node: int
    """Counts from 1."""
    life: int
    """Counts from 1: one more each time that the node was killed and started again."""
    nodes: int
    directory: str
    url: str
    namespace: str
    bound_s: float
    largest_bound_s: float
    """The largest bound of all nodes."""
    rate: float
    """Reads a second; 0 for as fast as possible."""
    write_rate: float
    seed: int
    other_url: str = ""
    """The URL of the second cache; "" for no second cache."""
    kafka: str = ""
    """The address of Kafka, if it carries the events."""
    proxy_ports: dict[int, int] = {}
    """The port of the proxy before each server, by the server's port; empty where there is one server."""
    encryption: bool = False
    """Whether values are encrypted."""

    @property
    def name(self) -> str:
        """The name of its history logs."""
        return name_of(self.node, self.life)


def name_of(node: int, life: int) -> str:
    """The name of the history logs of one process of a node, such as "2.1"."""
    return f"{node}.{life}"


decode_job = msgspec.json.Decoder(VerifyJob).decode
