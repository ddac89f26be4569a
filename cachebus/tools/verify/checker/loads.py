"""Loads that overlap: one loader a key at a time over all nodes, and without L2 one a key and node and bound.

What is checked, exactly. Two loads of one item overlap. That is a finding unless something ended the first one's lease
before the second began: a write that names the item was under way; its node stalled, lost L2 or was stopped, so that
the lease was not extended or the load was begun without one; the same befell the second one's node; or a fault was at
work that takes leases away or hides them. While the whole server is away there are no leases: then a node may begin a
load of an item that it has loaded itself less than D ago only if it has written it since, or lost all it held.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from cachebus.tools.verify.fleet.history_log import ITEM_MASK, VERB_SHIFT
from cachebus.tools.verify.fleet.loaders import ORDINARY

Span = tuple[float, float]
GRACE: Final = 0.9
"""A value loaded without L2 may be let go this share of D early, as deadlines are rounded."""


class Load(NamedTuple):
    """A load of an item, in `monotonic` seconds."""

    node: str
    item: int
    kind: int
    """Of `loaders`."""
    version: int
    """0: it failed."""
    began_s: float
    ended_s: float


class Excuses:
    """Times at which something was amiss: with one node, or with all. To be asked often, so kept sorted."""

    def __init__(self, spans: Iterable[Span]) -> None:
        merged: list[Span] = []
        for from_s, until_s in sorted(spans):
            if merged and from_s <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(until_s, merged[-1][1])
            else:
                merged.append((from_s, until_s))
        self._from = [span[0] for span in merged]
        self._until = [span[1] for span in merged]

    def touch(self, from_s: float, until_s: float) -> bool:
        """Whether one of them lies in this time, or part of it."""
        place = bisect_left(self._until, from_s)
        return place < len(self._from) and self._from[place] <= until_s


def loads_of(node: str, records: Iterable[tuple[int, int, float, float]], node_ended_s: float) -> Iterable[Load]:
    """The loads on a node's tape; one under way when the node ended, ended then."""
    for mark, version, began_s, ended_s in records:
        ended_s = ended_s or node_ended_s
        yield Load(node, mark & ITEM_MASK, mark >> VERB_SHIFT, version, began_s, ended_s)


def overlapping(loads: Iterable[Load]) -> list[tuple[Load, Load]]:
    """Pairs of loads of one item, of which the second began while the first was under way."""
    pairs = []
    latest: dict[int, Load] = {}
    for load in sorted(loads, key=lambda load: load.began_s):
        before = latest.get(load.item)
        if before is not None and load.began_s < before.ended_s:
            pairs.append((before, load))
        if before is None or load.ended_s >= before.ended_s:
            latest[load.item] = load
    return pairs


def unexplained(
    pairs: Iterable[tuple[Load, Load]],
    ends: Mapping[int, Excuses],
    trouble: Mapping[str, Excuses],
    faults: Excuses,
    *,
    lead_s: float,
) -> list[tuple[Load, Load]]:
    """The pairs for which nothing ended the first lease; `lead_s`: for how long before its load it may be granted."""
    none, found = Excuses(()), []
    for first, second in pairs:
        excuses = ends.get(first.item, none), trouble.get(first.node, none), trouble.get(second.node, none), faults
        if not any(excuse.touch(first.began_s - lead_s, second.began_s) for excuse in excuses):
            found.append((first, second))
    return found


def too_often(
    loads: Iterable[Load],
    away: Sequence[Span],
    forgot: Mapping[str, Excuses],
    writes: Mapping[str, Mapping[int, Excuses]],
    bound_s: float,
    lead_s: float,
    kept: Callable[[Load], bool],
    asked_s: Callable[[Load], float],
) -> list[tuple[Load, Load]]:
    """Pairs of ordinary loads by one node of one item, too soon after each other, while the whole server was away.
    `writes`: by node and item, its own. `kept`: whether the node keeps what it has loaded in its memory; `asked_s`:
    how old that is at most."""
    none, found = Excuses(()), []
    last: dict[tuple[str, int], Load] = {}
    for load in sorted(loads, key=lambda load: load.began_s):
        if load.kind != ORDINARY or not kept(load) or not any(a + lead_s <= load.began_s < b for a, b in away):
            last.pop((load.node, load.item), None)
            continue
        before = last.get((load.node, load.item))
        if before is not None and before.version and before.ended_s <= load.began_s < asked_s(before) + GRACE * bound_s:
            # In a busy process a load begins some time after its place in the history was noted.
            since = before.began_s - lead_s, load.began_s
            excused = forgot.get(load.node, none), writes.get(load.node, {}).get(load.item, none)
            if not any(excuses.touch(*since) for excuses in excused):
                found.append((before, load))
        last[load.node, load.item] = load
    return found
