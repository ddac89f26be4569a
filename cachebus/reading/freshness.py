"""How fresh a value is that several callers may be given, and until when it may be handed out.

1. `Freshness` of a flight: who comes later may share its value as long as this holds.
2. `Fallback`: an expired value has a freshness of its own, and is given as long as that holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cachebus.core.details import details
from cachebus.core.node import Node
from cachebus.core.ports import Position
from cachebus.core.shard import Shard
from cachebus.keys.key import Key
from cachebus.reading.request import Found, Request


class Freshness:
    """What this node knew of a shard when a value was asked for.

    It holds as long as nothing has replaced the value since, and a value of its age could be served from L1: under the
    lease, or within D of `as_of_s`.
    """

    __slots__ = ("_as_of_s", "_key", "_reservation", "_shard", "_snapshot", "_until_s")

    def __init__(self, shard: Shard, key: Key, tags: Sequence[str], as_of_s: float) -> None:
        """`as_of_s`: how fresh the value is at least, on this node's clock; `tags`: their scopes."""
        self._shard, self._key = shard, key
        self._reservation = shard.reserve()
        self._snapshot = shard.snapshot(key.family.bucket, (*key.scopes, *tags))
        self._as_of_s = as_of_s
        self._until_s = float("inf")

    @classmethod
    def of_a_get(cls, shard: Shard, request: Request, now_s: float) -> Freshness:
        """As fresh as a plain get sent now would be: as what judges it, the invalidations that the lease's probe
        brought."""
        as_of_s = shard.fresh_as_of_s if now_s < shard.valid_until_s else now_s
        return cls(shard, request.key, request.tags, as_of_s)

    def date_from(self, as_of_s: float) -> None:
        """What is asked for from now on is as fresh as this; what was invalidated since the beginning still counts."""
        self._as_of_s = as_of_s

    def end_at(self, until_s: float) -> None:
        """It holds no longer than that."""
        self._until_s = until_s

    def heed(self, tags: Sequence[str]) -> None:
        """The value carries these tags too: it holds no longer once one of them is invalidated."""
        self._snapshot.invalidated_at.update(self._shard.snapshot(self._key.family.bucket, tags).invalidated_at)

    def knows(self, tags: Sequence[str]) -> bool:
        """Whether it covers these tags, or could: none of them was invalidated since it began, or may have been."""
        noted = self._snapshot.invalidated_at
        new = [tag for tag in tags if tag not in noted]
        if not new:
            return True
        invalidated_at = self._shard.snapshot(self._key.family.bucket, new).invalidated_at
        if self._shard.doubts.cover(new, self._reservation.drops):
            return False
        return all(seq <= self._reservation.applied for seq in invalidated_at.values())

    def holds(self, now_s: float) -> bool:
        """Whether the value may be given to somebody who comes now."""
        shard, began = self._shard, self._reservation
        if began.epoch != shard.epoch or shard.overtaken(began, self._key.l1, began.applied, self._key.everywhere):
            return False
        # It may turn out to carry any tag: who has invalidated one must not be given what is older.
        if shard.tag_dropped_since(began, self._key.family.bucket):
            return False
        if not shard.unchanged(self._key.family.bucket, self._snapshot):
            return False
        if shard.doubts.cover(self._snapshot.invalidated_at, began.drops):
            return False
        return now_s < self._until_s and (now_s < shard.valid_until_s or now_s < self._as_of_s + shard.bound_s)

    def reaches(self, after: Position | None) -> bool:
        """Whether this node has applied what a token stands for; then whatever is older does not hold."""
        return after is None or self._shard.honours(after.epoch, after.seq)


class Fallback(NamedTuple):
    """An expired value for when the source fails or is slow, with a freshness of its own: however long the load goes
    on, it is not served for longer than it could be from L1."""

    found: Found
    fresh: Freshness
    version: bytes

    def usable(self, now_s: float) -> bool:
        """Whether it may be served now."""
        return self.fresh.holds(now_s)


def fallback_in_l1(node: Node, request: Request) -> Fallback | None:
    """An expired value in L1, to be served while the source fails or is slow. "Not found" is no value.

    There is none for a read with a token that this node has yet to reach, and for one that wants no memory.
    """
    key, shard = request.key, node.shards[request.key.shard]
    if not request.use_memory:
        return None
    if request.after is not None and not shard.honours(request.after.epoch, request.after.seq):
        return None
    entry = node.fallback(key, node.clock())
    extra = None if entry is None else details(entry)
    if entry is None or extra is None:
        return None
    fresh = Freshness(shard, key, extra.tags, entry.read_until_s - shard.bound_s)
    return Fallback(Found(entry.value, "l1", is_fallback=True, copy=extra.decode), fresh, extra.version)
