"""Which nodes there are, and which of them have applied a change, or can't serve its memory any more.

Each question of a node to L2 leaves its row there: how far it has applied which epoch. A node that has not applied a
change serves its memory only under a lease from a probe that was sent before the change's script had replied, or for D
after a load of its own, which began before it: D after that reply it serves nothing that the change replaced, whatever
became of it. D is the largest that any node of the fleet has. An earlier end must be proven:

1. Every row has applied the change. A row that stands still proves nothing: its node may be cut off from L2, and load
   for itself. So who was killed costs each wait D, until its row is removed: by a minute's silence, or by hand.
2. No row is missing. A set that was lost (evicted, flushed, of another epoch), or that somebody who may live was taken
   out of, has another name from then on. A node with a lease has asked L2 within D, so its row is in any set that is
   older. One without, since it is cut off, may still load for itself: only after `SILENT_S` more has it not reached L2
   for so long that nobody waits for it, unless no node keeps what it loads alone. This process has to have known the
   present name for that long, by its own clock.
"""

from __future__ import annotations

from typing import NamedTuple

from cachebus.core.ports import SILENT_S, Caller, Change, NodesReply


class Confirmed(NamedTuple):
    """The ids of the nodes that have applied a change, and of those that have not, and were waited for."""

    confirmed: tuple[str, ...] = ()
    lapsed: tuple[str, ...] = ()


class MembershipView:
    """The name of one shard's set of rows, and since when this process knows it, on its own clock."""

    __slots__ = ("name", "since_s")

    def __init__(self) -> None:
        self.name = b""
        self.since_s = float("inf")

    def saw(self, name: bytes, now_s: float) -> None:
        """An answer that came now has told the name."""
        if name != self.name:
            self.name, self.since_s = name, now_s if name else float("inf")


def first_bound_s(own_s: float, change: Change, caller: Caller) -> float:
    """The largest staleness bound of the fleet as far as this process and the change's script have heard."""
    return max(own_s, change.bound_ms / 1000, caller.largest.bound_ms / 1000)


def largest_bound_s(reply: NodesReply, own_s: float) -> float:
    """The largest staleness bound of the fleet: of this process, of every node whose row is there, or ever was."""
    return max(own_s, reply.bound_ms / 1000, *(row.about.bound_ms / 1000 for row in reply.rows.values()))


def complete_after_s(bound_s: float, *, keep_without_l2: bool) -> float:
    """How long a set of rows must have had its name to lack no node that counts. `keep_without_l2`: whether nodes
    keep what they load while L2 is out of reach."""
    return bound_s + (SILENT_S if keep_without_l2 else 0.0)


def keeps_without_l2(reply: NodesReply, own: bool) -> bool:
    """Whether any node of the fleet keeps what it loads while L2 is out of reach: as far as this process has heard, one
    whose row is there, or ever was."""
    return own or reply.keeps_without_l2 or any(row.about.keeps_without_l2 for row in reply.rows.values())


def judged(
    view: MembershipView, reply: NodesReply, change: Change, after_s: float, now_s: float
) -> tuple[Confirmed, bool]:
    """Who has applied the change by an answer that came now, and whether nobody else can serve what it replaced.
    `after_s`: as `complete_after_s` says."""
    view.saw(reply.name, now_s)
    confirmed: list[str] = []
    lapsed: list[str] = []
    for node, row in reply.rows.items():
        # Who has entered a later epoch than the change's has dropped everything.
        behind = row.epoch != reply.epoch or (row.epoch == change.epoch and row.applied < change.seq)
        (lapsed if behind else confirmed).append(node)
    complete = reply.epoch == change.epoch and bool(reply.rows) and now_s - view.since_s >= after_s
    return Confirmed(tuple(confirmed), tuple(lapsed)), complete and not lapsed
