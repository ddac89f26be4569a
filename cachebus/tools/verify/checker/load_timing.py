"""When loads happen: what is served was loaded recently enough, and no source is asked again too soon.

What is checked, exactly:

1. A read of a type that expires gives a value that some node loaded within that type's life.
2. A node whose load failed does not load again while the source rests. That holds if a read in between shows that it
   had something to serve, and if the source answered no other node, nor had answered one just before.
3. A node whose load succeeded does not load again before the value's soft expiry.

2 and 3 do not hold where the item was written meanwhile, or the node or the server was impaired.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from cachebus.tools.verify.checker.loads import Excuses, ItemLoad
from cachebus.tools.verify.fleet import data_types
from cachebus.tools.verify.fleet.history_log import ITEM_MASK
from cachebus.tools.verify.fleet.items import SourceItem
from cachebus.tools.verify.fleet.loaders import ORDINARY

EARLY: Final = 0.65
"""The least share of a rest, or of a soft life, that must pass: jitter shortens a rest, rounding a soft life."""
SLACK_S: Final = 0.5
"""A value's life begins when it is stored, so later than its load."""
LEAD_S: Final = 5.0
"""A read lasts no longer than this: it can't give what is loaded later."""
AT_ONCE_S: Final = 0.02
"""A read that is answered so soon after a failed load was waiting for that load."""
Shown = Iterable[Sequence[tuple[int, float, float]]]
"""Reads of a node, in batches: item, when it began, when it was answered."""


class LoadTimes:
    """When each item was loaded, and when it was found absent."""

    def __init__(
        self, items: Sequence[SourceItem], loads: Iterable[ItemLoad], stalls: Excuses, stalled_s: float
    ) -> None:
        """`stalls`: when any node may have stood still. It may store a loaded value `stalled_s` later then."""
        self._items, self._stalls, self._stalled_s = items, stalls, stalled_s
        self._found: dict[tuple[int, bool], list[tuple[float, float]]] = {}
        for load in loads:
            if load.version:
                gone = data_types.is_absent(items[load.item].data_type, load.version)
                self._found.setdefault((load.item, gone), []).append((load.ended_s, load.began_s))
        for ended in self._found.values():
            ended.sort()

    def outlived(self, code: int, version: int, started_s: float) -> bool:
        """Whether a read gave a value that no node has loaded within its life."""
        item = self._items[code & ITEM_MASK]
        life_s = data_types.MAX_AGE_S.get(item.data_type)
        if life_s is None or item.owned or data_types.is_absent(item.data_type, version):
            return False
        return self._too_old(item.number, False, started_s, started_s + LEAD_S, life_s)

    def absent_too_long(self, number: int, started_s: float, answered_s: float) -> bool:
        """Whether a read gave "not found" though no node has found the item absent within that answer's life."""
        item = self._items[number]
        if item.data_type not in data_types.MAX_AGE_S or item.owned:
            return False
        return self._too_old(number, True, started_s, answered_s, data_types.NEGATIVE_S)

    def _too_old(self, item: int, gone: bool, started_s: float, until_s: float, life_s: float) -> bool:
        since_s = started_s - SLACK_S - life_s
        if self._loaded(item, gone, since_s, until_s):
            return False
        return not self._stalls.overlap(since_s - self._stalled_s, started_s) or not self._loaded(
            item, gone, since_s - self._stalled_s, until_s
        )

    def _loaded(self, item: int, gone: bool, since_s: float, until_s: float) -> bool:
        ended = self._found.get((item, gone), [])
        place = bisect_left(ended, (since_s, 0.0))
        return any(began_s < until_s for _, began_s in ended[place:])


def loaded_too_soon(
    items: Sequence[SourceItem], loads: Iterable[ItemLoad], fill_s: float
) -> Iterator[tuple[ItemLoad, ItemLoad]]:
    """Pairs of loads of an item by one node, of which the second came before it was due. Where the first one failed,
    that counts only if the node had something to serve in between: see `served`. `fill_s`: so long after its load a
    value may come to L2, and to those who have loaded in vain meanwhile."""
    last: dict[tuple[str, int], ItemLoad] = {}
    answered: dict[int, float] = {}
    for load in sorted(loads, key=lambda load: load.began_s):
        before, answered_s = last.get((load.node, load.item)), answered.get(load.item, 0.0)
        last[load.node, load.item] = load
        if load.version:
            answered[load.item] = max(answered_s, load.ended_s)
        if before is not None and before.version == 0 and answered_s > before.began_s - fill_s:
            continue  # the source has answered another node meanwhile, or what it had answered came to this one then
        if before is None or load.kind != ORDINARY or before.kind != ORDINARY or before.ended_s > load.began_s:
            continue
        data_type = items[load.item].data_type
        if before.version == 0:
            due_s = before.ended_s + EARLY * data_types.REST_S.get(data_type, 0.0)
        else:
            due_s = before.began_s + EARLY * data_types.SOFT_S.get(data_type, 0.0)
        if load.began_s < due_s:
            yield before, load


def served(
    pairs: Iterable[tuple[ItemLoad, ItemLoad]], shown: Callable[[str], Shown]
) -> list[tuple[ItemLoad, ItemLoad]]:
    """Those pairs whose first load succeeded, or between which a read of the node gave something."""
    found, failed = [], dict[str, dict[int, list[tuple[ItemLoad, ItemLoad]]]]()
    for first, second in pairs:
        if first.version:
            found.append((first, second))
        else:
            failed.setdefault(first.node, {}).setdefault(first.item, []).append((first, second))
    for node, of_item in failed.items():
        for batch in shown(node):
            for item, started_s, answered_s in batch:
                waiting = of_item.get(item)
                if waiting:
                    fits = [pair for pair in waiting if _fits(pair, started_s, answered_s)]
                    found += fits
                    of_item[item] = [pair for pair in waiting if pair not in fits]
    return found


def _fits(pair: tuple[ItemLoad, ItemLoad], started_s: float, answered_s: float) -> bool:
    """Whether a read shows that there was something to serve after the first load, which failed. It was answered before
    the second load began, or by a fallback when that failed as well."""
    first, second = pair
    return first.ended_s < started_s and (
        answered_s < second.began_s
        or (second.version == 0 and started_s < second.began_s and answered_s < second.ended_s + AT_ONCE_S)
    )


def unexcused(
    pairs: Iterable[tuple[ItemLoad, ItemLoad]],
    writes: Mapping[int, Excuses],
    trouble: Mapping[str, Excuses],
    deleted: Excuses,
    lead_s: float,
) -> list[tuple[ItemLoad, ItemLoad]]:
    """Those pairs for which nothing explains the second load. `deleted`: when fill leases were deleted, so that L2
    refused what was loaded under one."""
    none: Any = Excuses(())
    return [
        (first, second)
        for first, second in pairs
        if not (first.version and deleted.overlap(first.began_s, first.ended_s))
        and not any(
            excuses.overlap(first.began_s - lead_s, second.began_s)
            for excuses in (writes.get(first.item, none), trouble.get(first.node, none))
        )
    ]
