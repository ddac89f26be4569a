"""Loads that overlap: one load of a key at a time in the fleet, and without L2 one for each key, node and bound.

What is checked, exactly. If two loads of one item overlap, that is a finding, unless the first one's lease may have
ended before the second began:

1. A write that names the item was under way.
2. The first load's node stalled, lost L2 or was stopped: its lease was not extended, or it loaded without one.
3. The same happened to the second load's node.
4. A fault was at work that deletes leases, or hides them.

While nobody reaches the server there are no leases. A node may then load an item again within D only if it has written
the item since, or dropped what it held.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from cachebus.tools.verify.fleet.history_log import ITEM_MASK, VERB_SHIFT
from cachebus.tools.verify.fleet.loaders import ORDINARY

Span = tuple[float, float]
GRACE: Final = 0.9
"""A value that was loaded without L2 lives for this share of D at least: deadlines are rounded."""


class ItemLoad(NamedTuple):
    """A load of an item, in `monotonic` seconds."""

    node: str
    item: int
    kind: int
    """SPECIAL, ORDINARY or UNKEPT of `fleet.loaders`."""
    version: int
    """0 if it failed."""
    began_s: float
    ended_s: float


class Excuses:
    """Spans of time in which misbehaviour is excused. Kept merged and sorted, since they are asked often."""

    def __init__(self, spans: Iterable[Span]) -> None:
        merged: list[Span] = []
        for from_s, until_s in sorted(spans):
            if merged and from_s <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(until_s, merged[-1][1])
            else:
                merged.append((from_s, until_s))
        self._from = [span[0] for span in merged]
        self._until = [span[1] for span in merged]

    def overlap(self, from_s: float, until_s: float) -> bool:
        """Whether any of them overlaps this span."""
        place = bisect_left(self._until, from_s)
        return place < len(self._from) and self._from[place] <= until_s


def loads_of(node: str, records: Iterable[tuple[int, int, float, float]], node_ended_s: float) -> Iterable[ItemLoad]:
    """The loads in a node's log. One that was under way when the node ended counts as ended then."""
    for code, version, began_s, ended_s in records:
        ended_s = ended_s or node_ended_s
        yield ItemLoad(node, code & ITEM_MASK, code >> VERB_SHIFT, version, began_s, ended_s)


def overlapping(loads: Iterable[ItemLoad]) -> list[tuple[ItemLoad, ItemLoad]]:
    """Pairs of loads of one item, the second of which began while the first was under way."""
    pairs = []
    latest: dict[int, ItemLoad] = {}
    for load in sorted(loads, key=lambda load: load.began_s):
        before = latest.get(load.item)
        if before is not None and load.began_s < before.ended_s:
            pairs.append((before, load))
        if before is None or load.ended_s >= before.ended_s:
            latest[load.item] = load
    return pairs


def unexplained(
    pairs: Iterable[tuple[ItemLoad, ItemLoad]],
    ends: Mapping[int, Excuses],
    trouble: Mapping[str, Excuses],
    faults: Excuses,
    *,
    lead_s: float,
) -> list[tuple[ItemLoad, ItemLoad]]:
    """Those pairs for which nothing ended the first lease. `lead_s`: how long before its load a lease may be
    granted."""
    none, found = Excuses(()), []
    for first, second in pairs:
        excuses = ends.get(first.item, none), trouble.get(first.node, none), trouble.get(second.node, none), faults
        if not any(excuse.overlap(first.began_s - lead_s, second.began_s) for excuse in excuses):
            found.append((first, second))
    return found


def reloaded_without_l2(
    loads: Iterable[ItemLoad],
    away: Sequence[Span],
    forgot: Mapping[str, Excuses],
    writes: Mapping[str, Mapping[int, Excuses]],
    bound_s: float,
    lead_s: float,
    kept: Callable[[ItemLoad], bool],
    asked_s: Callable[[ItemLoad], float],
) -> list[tuple[ItemLoad, ItemLoad]]:
    """Pairs of ordinary loads of one item by one node, too soon after each other, while nobody reached the server.

    `writes`: the node's own, by node and item. `kept`: whether the node keeps the loaded value in L1. `asked_s`: how
    old that value counts.
    """
    none, found = Excuses(()), []
    last: dict[tuple[str, int], ItemLoad] = {}
    for load in sorted(loads, key=lambda load: load.began_s):
        if load.kind != ORDINARY or not kept(load) or not any(a + lead_s <= load.began_s < b for a, b in away):
            last.pop((load.node, load.item), None)
            continue
        before = last.get((load.node, load.item))
        if before is not None and before.version and before.ended_s <= load.began_s < asked_s(before) + GRACE * bound_s:
            # In a busy process the loader starts some time after the load's reservation was taken.
            since = before.began_s - lead_s, load.began_s
            excused = forgot.get(load.node, none), writes.get(load.node, {}).get(load.item, none)
            if not any(excuses.overlap(*since) for excuses in excused):
                found.append((before, load))
        last[load.node, load.item] = load
    return found
