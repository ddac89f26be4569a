"""All writes of a run, and the check of every read against them."""

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
from cachebus.tools.verify.fleet.items import SourceItem
from cachebus.tools.verify.fleet.reading import L2
from cachebus.tools.verify.fleet.setup import DB_TIMEOUT_S
from cachebus.tools.verify.fleet.writing import (
    ENDS_LEASES,
    EVERY_CONTEXT,
    NO_CHANGE,
    NOT_OWN,
    OF_ALL_TENANTS,
    OF_ALL_TYPES,
    SCOPES,
    VALUE_WRITES,
)

EVERY_TENANT: Final = "*"
"""In place of a tenant: all of them."""


class Write(NamedTuple):
    """A change that was committed and then invalidated. Times are `monotonic` seconds; 0.0 stands for never."""

    node: str
    """The node's number and life, such as "2.1"."""
    verb: int
    item: int
    version: int
    called_s: float
    returned_s: float
    failed_s: float
    """When a call for it raised last. It may have happened all the same, then or later."""
    epoch: int
    seq: int
    waited: bool = False
    """Whether it was made with `wait="nodes"`, and so returned when no node had the old value any more."""
    guard_ends_s: float = 0.0
    """For a write behind a guard: when the guard ends by itself."""

    @property
    def visible_from_s(self) -> float:
        """From when on every read should see it, within the bound; 0.0 for never."""
        return self.returned_s or self.guard_ends_s

    @property
    def in_flight_until_s(self) -> float:
        """When it ends; infinite if it never returned, since its message may still arrive."""
        return max(self.returned_s, self.failed_s) or self.guard_ends_s or float("inf")

    def guard_ends_for_all_s(self, data_loss: Excuses | None) -> float:
        """When the guard is over for everybody. If L2 lost it, that is later than it ends by itself: who stores a value
        then can't know when the guard began."""
        lost = data_loss is not None and data_loss.overlap(self.called_s, self.guard_ends_s)
        return self.guard_ends_s + (DB_TIMEOUT_S if lost else 0.0)


class StaleRead(NamedTuple):
    """A stale read: it gave a version that a write had replaced."""

    node: str
    verb: int
    item: int
    version: int
    started_s: float
    age_s: float
    missed: int
    """The least version that it should have given."""


RecordTable = list[tuple[list[float], list[int]] | None]
"""By item: times in order, and the newest version by each of them."""


def writes_of(node: str, records: Iterable[tuple[Any, ...]]) -> Iterator[Write]:
    """The writes in a node's log."""
    for code, version, called_s, returned_s, failed_s, epoch, seq in records:
        verb, item = code >> VERB_SHIFT, code & ITEM_MASK
        verb, waited, ends_s = verb & ~WAITED, bool(verb & WAITED), 0.0
        if verb == GUARDED:
            failed_s, ends_s = 0.0, failed_s
        yield Write(node, verb, item, version, called_s, returned_s, failed_s, epoch, seq, waited, ends_s)


def _table(items: int, rows: Iterable[tuple[int, float, int]]) -> RecordTable:
    """The table of these triples of item, time and version."""
    by_item: dict[int, list[tuple[float, int]]] = {}
    for item, at_s, version in rows:
        by_item.setdefault(item, []).append((at_s, version))
    table: RecordTable = [None] * items
    for item, group in by_item.items():
        group.sort()
        # Calls may return in another order than their changes were committed in: the highest version counts.
        table[item] = [at_s for at_s, _ in group], list(accumulate((version for _, version in group), max))
    return table


def _least_version(table: RecordTable, item: int, at_s: float) -> int:
    """The least version that a read which began at this time should give, by this table; 0 for any."""
    known = table[item]
    before = 0 if known is None else bisect_left(known[0], at_s)
    return known[1][before - 1] if known is not None and before else 0


class History:
    """All writes of a run, in tables by item."""

    def __init__(
        self,
        items: int,
        writes: Iterable[Write],
        data_loss: Excuses | None = None,
        unaware: Callable[[Write], bool] = lambda write: False,
    ) -> None:
        """`data_loss`: when L2 may have lost guards. What is stored then lives as long as any guard may have stood.
        `unaware`: whether a write's node could not know all nodes that it had to wait for."""
        self.items = items
        self.writes = list(writes)
        self.returned = self.table()
        self.waited = self.table(which=lambda write: write.waited and not unaware(write))
        self.guarded = _table(
            items, ((w.item, w.guard_ends_for_all_s(data_loss), w.version) for w in self.writes if w.guard_ends_s)
        )
        """When guards were over, and the newest version that was committed behind one by then, invalidated or not."""
        self.latest = self._latest()
        self.named = self.table(which=lambda write: write.verb in ENDS_LEASES - {EVERY_CONTEXT})
        """As `returned`, for writes that remove the item's record, and leave no code in L2."""
        self.unsure = {
            (w.item, w.version) for w in self.writes if w.verb in VALUE_WRITES and (not w.returned_s or w.failed_s)
        }
        """Values whose write raised or never returned: they may enter the cache at any time after the call."""

    def table(self, node: str | None = None, which: Callable[[Write], bool] | None = None) -> RecordTable:
        """When writes returned, and the newest version by then. `node`: of one node alone. `which`: of some writes."""
        return _table(
            self.items,
            (
                (w.item, w.returned_s, w.version)
                for w in self.writes
                if w.returned_s and w.verb not in NO_CHANGE and node in (None, w.node) and (which is None or which(w))
            ),
        )

    def _latest(self) -> list[int]:
        """The newest version that any promise is about, by item."""
        latest = [0] * self.items
        for table in (self.returned, self.guarded):
            for item, known in enumerate(table):
                if known is not None:
                    latest[item] = max(latest[item], known[1][-1])
        return latest

    def unconfirmed(self) -> list[int]:
        """Items whose newest change may not be invalidated yet, or for which an old value may still arrive."""
        newest: dict[int, int] = {}
        confirmed: dict[int, int] = {}
        for write in self.writes:
            newest[write.item] = max(newest.get(write.item, 0), write.version)
            if write.returned_s and write.verb not in NO_CHANGE:
                confirmed[write.item] = max(confirmed.get(write.item, 0), write.version)
        lacking = {item for item, version in newest.items() if confirmed.get(item, 1) < version}
        return sorted(lacking | {item for item, _ in self.unsure})

    def touching(self, items: Sequence[SourceItem | None], node: str = "") -> dict[int, Excuses]:
        """When a write (of this node) was under way that may remove what is cached of an item, by item. The write of a
        scope touches every item in it."""
        spans: dict[int, list[Span]] = {}
        of_scope: dict[tuple[int, str | None, str], list[Span]] = {}
        for write in self.writes:
            if node not in ("", write.node):
                continue
            spans.setdefault(write.item, []).append((write.called_s, write.in_flight_until_s))
            item = items[write.item]
            if write.verb in SCOPES and item is not None:
                # The log names some items of the scope only: those that it holds may be of other tenants, or types.
                tenant = EVERY_TENANT if write.verb in OF_ALL_TENANTS else item.tenant
                scope = item.cache_index, tenant, "" if write.verb in OF_ALL_TYPES else item.data_type
                of_scope.setdefault(scope, []).append((write.called_s, write.in_flight_until_s))
        return {
            item.number: Excuses(
                span
                for found in (
                    spans.get(item.number, ()),
                    of_scope.get((item.cache_index, item.tenant, item.data_type), ()),
                    of_scope.get((item.cache_index, item.tenant, ""), ()),
                    of_scope.get((item.cache_index, EVERY_TENANT, item.data_type), ()),
                    of_scope.get((item.cache_index, EVERY_TENANT, ""), ()),
                )
                for span in found
            )
            for item in items
            if item is not None
        }

    def ending_leases(self) -> dict[int, list[tuple[float, float]]]:
        """When a write was under way that ends a fill lease, by item; for ever if it never returned, since its
        message may still arrive."""
        spans: dict[int, list[tuple[float, float]]] = {}
        for write in self.writes:
            if write.verb in ENDS_LEASES:
                spans.setdefault(write.item, []).append(
                    (write.called_s, write.returned_s or write.guard_ends_s or float("inf"))
                )
        return spans


LATE_MAX: Final = 10_000
"""Late reads that are kept for the check of what happens without faults."""


@dataclass
class ReadCheck:
    """Checks reads against a history. Each list has a few examples of what its count counts."""

    history: History
    kept_max: int = 5
    judged: int = 0
    unsure: int = 0
    ages: list[int] = field(default_factory=lambda: [0] * (len(EDGES_S) + 1))
    beyond: int = 0
    own_missed: int = 0
    worst_age_s: float = 0.0
    worst: list[StaleRead] = field(default_factory=list)
    """G1: beyond the bound (`beyond`), the first of each item."""
    missed: list[StaleRead] = field(default_factory=list)
    """G2: a node did not see its own write (`own_missed`)."""
    fills: int = 0
    filled: list[StaleRead] = field(default_factory=list)
    """G5: L2 gave a record after a write had removed it (`fills`)."""
    unseen: int = 0
    waited: list[StaleRead] = field(default_factory=list)
    """G4: a node did not see a write that had waited for the nodes (`unseen`)."""
    late: list[StaleRead] = field(default_factory=list)
    """Reads that were older than half of the bound."""
    outlived: int = 0
    guarded: list[StaleRead] = field(default_factory=list)
    """G6: a value outlived the guard behind which it was replaced (`outlived`)."""

    def add(self, node: str, batches: Iterable[Sequence[tuple[int, int, float]]], bound_s: float) -> Iterator[None]:
        """Check the reads of a node. `bound_s`: the node's bound, in seconds. Yields after each batch."""
        latest, returned, own = (
            self.history.latest,
            self.history.returned,
            self.history.table(node, lambda write: write.verb not in NOT_OWN),
        )
        for batch in batches:
            self.judged += len(batch)
            for code, version, started_s in batch:  # ten million times in a long run: kept plain for speed
                item = code & ITEM_MASK
                if latest[item] <= version:
                    continue
                if _least_version(returned, item, started_s) > version:
                    self._stale(node, code, version, started_s, bound_s)
                    mine = own[item]
                    if mine is not None and mine[1][-1] > version:
                        self._own(node, code, version, started_s, mine)
                if _least_version(self.history.guarded, item, started_s) > version:
                    self._outlived(node, code, version, started_s)
            yield

    def _stale(self, node: str, code: int, version: int, started_s: float, bound_s: float) -> None:
        item = code & ITEM_MASK
        known = self.history.returned[item]
        if known is None or (item, version) in self.history.unsure:
            self.unsure += 1
            return
        place = bisect_right(known[1], version)
        age_s = started_s - known[0][place]
        self.ages[bucket_of(age_s)] += 1
        if code >> VERB_SHIFT == L2:
            self._from_l2(node, code, version, started_s)
        self.worst_age_s = max(self.worst_age_s, age_s)
        stale = StaleRead(node, code >> VERB_SHIFT, item, version, started_s, age_s, known[1][place])
        if age_s > bound_s / 2 and len(self.late) < LATE_MAX:
            self.late.append(stale)
        if age_s > bound_s:
            self.beyond += 1
            self._keep(self.worst, stale)
        due = _least_version(self.history.waited, item, started_s)
        if due > version:
            self.unseen += 1
            self._keep(self.waited, stale._replace(missed=due))

    def _outlived(self, node: str, code: int, version: int, started_s: float) -> None:
        item = code & ITEM_MASK
        known = self.history.guarded[item]
        if known is None or (item, version) in self.history.unsure:
            return
        self.outlived += 1
        place = bisect_right(known[1], version)
        age_s, missed = started_s - known[0][place], known[1][place]
        self._keep(self.guarded, StaleRead(node, code >> VERB_SHIFT, item, version, started_s, age_s, missed))

    def _from_l2(self, node: str, code: int, version: int, started_s: float) -> None:
        """A read of L2 alone, after a write of this key returned. That write removed the record: if it is there, a fill
        put it there afterwards."""
        named = self.history.named[code & ITEM_MASK]
        before = 0 if named is None else bisect_left(named[0], started_s)
        if named is None or not before or named[1][before - 1] <= version:
            return
        self.fills += 1
        place = bisect_right(named[1], version)
        stale = StaleRead(node, L2, code & ITEM_MASK, version, started_s, started_s - named[0][place], named[1][place])
        self._keep(self.filled, stale)

    def _own(self, node: str, code: int, version: int, started_s: float, mine: tuple[list[float], list[int]]) -> None:
        item, before = code & ITEM_MASK, bisect_left(mine[0], started_s)
        if not before or mine[1][before - 1] <= version or (item, version) in self.history.unsure:
            return
        self.own_missed += 1
        place = bisect_right(mine[1], version)
        self._keep(
            self.missed,
            StaleRead(node, code >> VERB_SHIFT, item, version, started_s, started_s - mine[0][place], mine[1][place]),
        )

    def _keep(self, kept: list[StaleRead], stale: StaleRead) -> None:
        if len(kept) < self.kept_max and all(stale.item != other.item for other in kept):
            kept.append(stale)
