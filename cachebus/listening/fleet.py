"""What a probe tells of others that weakens a promise: how they are set up."""

from __future__ import annotations

from cachebus.core.node import Node
from cachebus.core.ports import Largest, ProbeReply
from cachebus.listening.outages import Notices


def _described(largest: Largest) -> str:
    return (
        f"staleness_bound_s {largest.bound_ms / 1000:g}, guard_max_s {largest.guard_ms / 1000:g} and "
        f"keep_without_l2 {str(largest.keeps_without_l2).lower()}"
    )


class FleetWatch:
    """Says once, and again when it changes, what a node should know of the others and of the primaries."""

    def __init__(self, node: Node, notices: Notices) -> None:
        self._node = node
        self._notices = notices
        self.loose_replicas = [0] * len(node.shards)
        """By shard: as of `ProbeReply`, the most that were seen."""
        self._gone = [False] * len(node.shards)
        """By shard: whether there are fewer of them now."""

    def probed(self, index: int, reply: ProbeReply) -> None:
        """Look at what a probe has told."""
        self._compare_bounds(index)
        self._note_replicas(index, reply.loose_replicas)

    def refused(self, index: int, why: str) -> None:
        """The primary has refused a probe. One that lacks replicas waits for some, so it has none that are loose."""
        if "NOREPLICAS" in why:
            self.loose_replicas[index], self._gone[index] = 0, False
            self._say_replicas()

    def _compare_bounds(self, index: int) -> None:
        """Others may have a larger staleness bound or longer guards, or keep what they load alone."""
        own, largest = Largest.of(self._node.about), self._node.largest[index]
        self._notices.say(
            "bounds",
            f"nodes of this namespace have, or had, {_described(largest)}, this one has {_described(own)}: waits for "
            "the nodes last as the largest, which is never lowered"
            if largest != own
            else "",
        )

    def _note_replicas(self, index: int, now: int) -> None:
        """Note how many replicas a primary has that would go on writing when it is cut off from them.

        That they have gone is the very danger, and no time ends it, nor does a new epoch. So the most that were seen
        count, until the primary waits for some (-1).
        """
        known = self.loose_replicas[index]
        self.loose_replicas[index] = seen = 0 if now < 0 else max(known, now)
        gone = max(0, now) < seen
        if gone != self._gone[index] or seen != known:  # to look at thousands of shards costs more than a probe
            self._gone[index] = gone
            self._say_replicas()

    def _say_replicas(self) -> None:
        if any(self._gone):
            what, then = "replicas of a primary are gone", "if they were promoted, it goes on"
        else:
            what, then = "a primary has replicas", "cut off from them it goes on"
        self._notices.say(
            "replicas",
            f"{what}, and its min-replicas-to-write is 0: {then} acknowledging what is lost once one is promoted, and "
            "renewing leases (G1, G3, G4, G7); see `cachebus doctor`"
            if any(self.loose_replicas)
            else "",
        )
