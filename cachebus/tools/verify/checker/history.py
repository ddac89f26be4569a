"""All writes of a run, and every read held against them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple

from cachebus.tools.verify.checker.loads import Excuses, Span
from cachebus.tools.verify.checker.verdict import EDGES_S, bucket_of
from cachebus.tools.verify.fleet.guarded_writes import GUARDED
from cachebus.tools.verify.fleet.history_log import ITEM_MASK, VERB_SHIFT, WAITED
from cachebus.tools.verify.fleet.items import Item
from cachebus.tools.verify.fleet.reading import L2
from cachebus.tools.verify.fleet.setup import GUARD_DB_S
from cachebus.tools.verify.fleet.writing import BY_OTHERS, ENDS_LEASES, EVERY_CONTEXT, PUTS, SCOPES, TAG, TENANT, UNTOLD


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
    waited: bool = False
    """Whether it returned only when no node had the old value any more."""
    guard_ends_s: float = 0.0
    """Of one behind a guard: when that ends by itself."""

    @property
    def due_s(self) -> float:
        """From when on it is to be seen; 0.0: never."""
        return self.returned_s or self.guard_ends_s

    @property
    def over_s(self) -> float:
        """From when on it is under way no more; infinite if it never returned, since its message may still come."""
        return max(self.returned_s, self.failed_s) or self.guard_ends_s or float("inf")

    def guard_over_s(self, losing: Excuses | None) -> float:
        """When a guard is over for all: later than it ends by itself where it was lost, since who stores something then
        can't know when it began."""
        lost = losing is not None and losing.touch(self.called_s, self.guard_ends_s)
        return self.guard_ends_s + (GUARD_DB_S if lost else 0.0)


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
        verb, waited, ends_s = verb & ~WAITED, bool(verb & WAITED), 0.0
        if verb == GUARDED:
            failed_s, ends_s = 0.0, failed_s
        yield Write(node, verb, item, version, called_s, returned_s, failed_s, epoch, seq, waited, ends_s)


def _table(items: int, told: Iterable[tuple[int, float, int]]) -> Table:
    """From items, times and versions: by item, the times, and the newest version by then."""
    by_item: dict[int, list[tuple[float, int]]] = {}
    for item, at_s, version in told:
        by_item.setdefault(item, []).append((at_s, version))
    table: Table = [None] * items
    for item, group in by_item.items():
        group.sort()
        # Calls may return in another order than their changes were committed in: the highest version counts.
        table[item] = [at_s for at_s, _ in group], list(accumulate((version for _, version in group), max))
    return table


def _due(table: Table, item: int, at_s: float) -> int:
    """The version that something which began then should have shown at least, by this table; 0: any."""
    known = table[item]
    before = 0 if known is None else bisect_left(known[0], at_s)
    return known[1][before - 1] if known is not None and before else 0


class History:
    """All writes."""

    def __init__(
        self,
        items: int,
        writes: Iterable[Write],
        losing: Excuses | None = None,
        ignorant: Callable[[Write], bool] = lambda write: False,
    ) -> None:
        """`losing`: when L2 may have lost guards. What is stored then lives as long as any of them might have stood.
        `ignorant`: whether who wrote could not know of all nodes that it had to wait for."""
        self.items = items
        self.writes = list(writes)
        self.told = self.table()
        self.waited = self.table(which=lambda write: write.waited and not ignorant(write))
        self.guarded = _table(
            items, ((w.item, w.guard_over_s(losing), w.version) for w in self.writes if w.guard_ends_s)
        )
        """When guards were over, and the newest version committed behind one by then, whether or not that was told."""
        self.latest = self._latest()
        self.named = self.table(which=lambda write: write.verb in ENDS_LEASES - {EVERY_CONTEXT})
        """As `told`, by writes that remove the item's record, and leave no mark to be judged by."""
        self.unsure = {(w.item, w.version) for w in self.writes if w.verb in PUTS and (not w.returned_s or w.failed_s)}
        """Values that may come into the cache at any time after their call, since that raised or never returned."""

    def table(self, node: str | None = None, which: Callable[[Write], bool] | None = None) -> Table:
        """By item: when writes had returned, and the newest version that had by then; of one node and of some writes,
        or of all."""
        return _table(
            self.items,
            (
                (w.item, w.returned_s, w.version)
                for w in self.writes
                if w.returned_s and w.verb not in UNTOLD and node in (None, w.node) and (which is None or which(w))
            ),
        )

    def _latest(self) -> list[int]:
        """By item: the newest version of which anything was promised."""
        latest = [0] * self.items
        for table in (self.told, self.guarded):
            for item, known in enumerate(table):
                if known is not None:
                    latest[item] = max(latest[item], known[1][-1])
        return latest

    def untold(self) -> list[int]:
        """Items whose newest change the cache may not have heard of, or that an old value may still come to."""
        newest: dict[int, int] = {}
        told: dict[int, int] = {}
        for write in self.writes:
            newest[write.item] = max(newest.get(write.item, 0), write.version)
            if write.returned_s and write.verb not in UNTOLD:
                told[write.item] = max(told.get(write.item, 0), write.version)
        lacking = {item for item, version in newest.items() if told.get(item, 1) < version}
        return sorted(lacking | {item for item, _ in self.unsure})

    def newest(self, item: int) -> int:
        """The newest version of which the cache was told."""
        known = self.told[item]
        return known[1][-1] if known else 0

    def touching(self, items: Sequence[Item | None], node: str = "") -> dict[int, Excuses]:
        """By item: while a write (of this node) was under way that removes what is cached of it; of a scope, whatever
        it holds."""
        spans: dict[int, list[Span]] = {}
        of_scope: dict[tuple[int, str | None, str], list[Span]] = {}
        for write in self.writes:
            if node not in ("", write.node):
                continue
            spans.setdefault(write.item, []).append((write.called_s, write.over_s))
            item = items[write.item]
            if write.verb in SCOPES and item is not None:
                # Which others it holds is not written down; of a tenant or a tag they are of every type, else of this.
                scope = item.world, item.tenant, "" if write.verb in (TENANT, TAG) else item.data_type
                of_scope.setdefault(scope, []).append((write.called_s, write.over_s))
        return {
            item.number: Excuses(
                span
                for found in (
                    spans.get(item.number, ()),
                    of_scope.get((item.world, item.tenant, item.data_type), ()),
                    of_scope.get((item.world, item.tenant, ""), ()),
                )
                for span in found
            )
            for item in items
            if item is not None
        }

    def ending_leases(self) -> dict[int, list[tuple[float, float]]]:
        """By item: from when until when a write was under way that ends a load's lease; for ever if it never returned,
        since its message may still have been on its way."""
        spans: dict[int, list[tuple[float, float]]] = {}
        for write in self.writes:
            if write.verb in ENDS_LEASES:
                spans.setdefault(write.item, []).append(
                    (write.called_s, write.returned_s or write.guard_ends_s or float("inf"))
                )
        return spans


LATE_MAX: Final = 10_000


@dataclass
class Check:
    """Holds reads against a history."""

    history: History
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
    unseen: int = 0
    waited: list[Stale] = field(default_factory=list)
    """Of writes that had waited for the nodes."""
    late: list[Stale] = field(default_factory=list)
    """Those that were older than half of the bound."""
    outlived: int = 0
    guarded: list[Stale] = field(default_factory=list)
    """Of what was replaced behind a guard that was over."""

    def add(self, node: str, batches: Iterable[Sequence[tuple[int, int, float]]], bound_s: float) -> Iterator[None]:
        """Check the reads of a node, whose bound this is; gives way after each batch."""
        latest, told, own = (
            self.history.latest,
            self.history.told,
            self.history.table(node, lambda write: write.verb not in BY_OTHERS),
        )
        for batch in batches:
            self.judged += len(batch)
            for mark, version, started_s in batch:  # ten million times in a long run: kept as plain as can be
                item = mark & ITEM_MASK
                if latest[item] <= version:
                    continue
                if _due(told, item, started_s) > version:
                    self._stale(node, mark, version, started_s, bound_s)
                    mine = own[item]
                    if mine is not None and mine[1][-1] > version:
                        self._own(node, mark, version, started_s, mine)
                if _due(self.history.guarded, item, started_s) > version:
                    self._outlived(node, mark, version, started_s)
            yield

    def _stale(self, node: str, mark: int, version: int, started_s: float, bound_s: float) -> None:
        item = mark & ITEM_MASK
        known = self.history.told[item]
        if known is None or (item, version) in self.history.unsure:
            self.unsure += 1
            return
        place = bisect_right(known[1], version)
        age_s = started_s - known[0][place]
        self.ages[bucket_of(age_s)] += 1
        if mark >> VERB_SHIFT == L2:
            self._from_l2(node, mark, version, started_s)
        self.worst_age_s = max(self.worst_age_s, age_s)
        stale = Stale(node, mark >> VERB_SHIFT, item, version, started_s, age_s, known[1][place])
        if age_s > bound_s / 2 and len(self.late) < LATE_MAX:
            self.late.append(stale)
        if age_s > bound_s:
            self.beyond += 1
            self._keep(self.worst, stale)
        due = _due(self.history.waited, item, started_s)
        if due > version:
            self.unseen += 1
            self._keep(self.waited, stale._replace(missed=due))

    def _outlived(self, node: str, mark: int, version: int, started_s: float) -> None:
        item = mark & ITEM_MASK
        known = self.history.guarded[item]
        if known is None or (item, version) in self.history.unsure:
            return
        self.outlived += 1
        place = bisect_right(known[1], version)
        age_s, missed = started_s - known[0][place], known[1][place]
        self._keep(self.guarded, Stale(node, mark >> VERB_SHIFT, item, version, started_s, age_s, missed))

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
