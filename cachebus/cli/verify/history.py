"""All writes of a run, and every read held against them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from cachebus.cli.verify.reading import L2
from cachebus.cli.verify.tape import ITEM_MASK, VERB_SHIFT
from cachebus.cli.verify.verdict import EDGES_S, bucket_of
from cachebus.cli.verify.writing import ADD, ENDS_LEASES, EVERY_CONTEXT, PUTS


class Write(NamedTuple):
    """A change that was committed and then told to the cache, in `monotonic` seconds; 0.0: never."""

    node: str
    """The node's number and life, such as "2.1"."""
    verb: int
    item: int
    version: int
    called_s: float
    returned_s: float
    failed_s: float
    """When a call of it raised last: it may have happened then all the same, or later."""
    epoch: int
    seq: int


class Stale(NamedTuple):
    """A read that gave what a write had replaced."""

    node: str
    verb: int
    item: int
    version: int
    started_s: float
    age_s: float
    missed: int
    """The version of the write that it should have shown at least."""


Table = list[tuple[list[float], list[int]] | None]


def writes_of(node: str, records: Iterable[tuple[Any, ...]]) -> Iterator[Write]:
    """The writes on a node's tape."""
    for mark, version, called_s, returned_s, failed_s, epoch, seq in records:
        verb, item = mark >> VERB_SHIFT, mark & ITEM_MASK
        yield Write(node, verb, item, version, called_s, returned_s, failed_s, epoch, seq)


class History:
    """All writes."""

    def __init__(self, items: int, writes: Iterable[Write]) -> None:
        self.items = items
        self.writes = list(writes)
        self.told = self.table()
        self.named = self.table(verbs=ENDS_LEASES - {EVERY_CONTEXT})
        """As `told`, by writes that remove the item's record, and leave no mark to be judged by."""
        self.unsure = {(w.item, w.version) for w in self.writes if w.verb in PUTS and (not w.returned_s or w.failed_s)}
        """Values that may come into the cache at any time after their call, since that raised or never returned."""

    def table(self, node: str | None = None, verbs: frozenset[int] | None = None) -> Table:
        """By item: when writes had returned, and the newest version that had by then; of one node and of some verbs,
        or of all."""
        by_item: dict[int, list[Write]] = {}
        for write in self.writes:
            if not write.returned_s or write.verb == ADD or (verbs is not None and write.verb not in verbs):
                continue
            if node in (None, write.node):
                by_item.setdefault(write.item, []).append(write)
        table: Table = [None] * self.items
        for item, group in by_item.items():
            group.sort(key=lambda write: write.returned_s)
            # Calls may return in another order than their changes were committed in: the highest version counts.
            table[item] = [w.returned_s for w in group], list(accumulate((w.version for w in group), max))
        return table

    def untold(self) -> list[int]:
        """Items whose newest change the cache may not have heard of, or that an old value may still come to."""
        newest: dict[int, int] = {}
        told: dict[int, int] = {}
        for write in self.writes:
            newest[write.item] = max(newest.get(write.item, 0), write.version)
            if write.returned_s and write.verb != ADD:
                told[write.item] = max(told.get(write.item, 0), write.version)
        lacking = {item for item, version in newest.items() if told.get(item, 1) < version}
        return sorted(lacking | {item for item, _ in self.unsure})

    def newest(self, item: int) -> int:
        """The newest version of which the cache was told."""
        known = self.told[item]
        return known[1][-1] if known else 0

    def ending_leases(self) -> dict[int, list[tuple[float, float]]]:
        """By item: from when until when a write was under way that ends a load's lease; for ever if it never returned,
        since its message may still have been on its way."""
        spans: dict[int, list[tuple[float, float]]] = {}
        for write in self.writes:
            if write.verb in ENDS_LEASES:
                spans.setdefault(write.item, []).append((write.called_s, write.returned_s or float("inf")))
        return spans


@dataclass
class Check:
    """Holds reads against a history."""

    history: History
    bound_s: float
    kept_max: int = 5
    judged: int = 0
    unsure: int = 0
    ages: list[int] = field(default_factory=lambda: [0] * (len(EDGES_S) + 1))
    beyond: int = 0
    own_missed: int = 0
    worst_age_s: float = 0.0
    worst: list[Stale] = field(default_factory=list)
    """Of those beyond the bound, the first of each item."""
    missed: list[Stale] = field(default_factory=list)
    """Of own writes."""
    fills: int = 0
    filled: list[Stale] = field(default_factory=list)
    """Of what L2 gave after a write had removed it."""

    def add(self, node: str, batches: Iterable[Sequence[tuple[int, int, float]]]) -> Iterator[None]:
        """Check the reads of a node; gives way after each batch."""
        told, own = self.history.told, self.history.table(node)
        for batch in batches:
            self.judged += len(batch)
            for mark, version, started_s in batch:  # ten million times in a long run: kept as plain as can be
                item = mark & ITEM_MASK
                known = told[item]
                if known is None or known[1][-1] <= version:
                    continue
                before = bisect_left(known[0], started_s)
                if before and known[1][before - 1] > version:
                    self._stale(node, mark, version, started_s, known)
                    mine = own[item]
                    if mine is not None and mine[1][-1] > version:
                        self._own(node, mark, version, started_s, mine)
            yield

    def _stale(
        self, node: str, mark: int, version: int, started_s: float, known: tuple[list[float], list[int]]
    ) -> None:
        item = mark & ITEM_MASK
        if (item, version) in self.history.unsure:
            self.unsure += 1
            return
        place = bisect_right(known[1], version)
        age_s = started_s - known[0][place]
        self.ages[bucket_of(age_s)] += 1
        if mark >> VERB_SHIFT == L2:
            self._from_l2(node, mark, version, started_s)
        self.worst_age_s = max(self.worst_age_s, age_s)
        if age_s > self.bound_s:
            self.beyond += 1
            stale = Stale(node, mark >> VERB_SHIFT, item, version, started_s, age_s, known[1][place])
            self._keep(self.worst, stale)

    def _from_l2(self, node: str, mark: int, version: int, started_s: float) -> None:
        """What was asked of L2 itself after a write that names its key had returned: there is no such record then,
        unless something put it there afterwards."""
        named = self.history.named[mark & ITEM_MASK]
        before = 0 if named is None else bisect_left(named[0], started_s)
        if named is None or not before or named[1][before - 1] <= version:
            return
        self.fills += 1
        place = bisect_right(named[1], version)
        stale = Stale(node, L2, mark & ITEM_MASK, version, started_s, started_s - named[0][place], named[1][place])
        self._keep(self.filled, stale)

    def _own(self, node: str, mark: int, version: int, started_s: float, mine: tuple[list[float], list[int]]) -> None:
        item, before = mark & ITEM_MASK, bisect_left(mine[0], started_s)
        if not before or mine[1][before - 1] <= version or (item, version) in self.history.unsure:
            return
        self.own_missed += 1
        place = bisect_right(mine[1], version)
        self._keep(
            self.missed,
            Stale(node, mark >> VERB_SHIFT, item, version, started_s, started_s - mine[0][place], mine[1][place]),
        )

    def _keep(self, kept: list[Stale], stale: Stale) -> None:
        if len(kept) < self.kept_max and all(stale.item != other.item for other in kept):
            kept.append(stale)
