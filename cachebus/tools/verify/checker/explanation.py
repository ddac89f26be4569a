"""The explanation of a finding: the part of the history that led to it, a line for each event.

A stale read is explained by the write that it missed, by what each node had applied then, and by the faults at work.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cachebus.tools.verify.checker.history import StaleRead, Write
from cachebus.tools.verify.checker.loads import ItemLoad
from cachebus.tools.verify.fleet.disturbances import DISTURBANCES, LATE
from cachebus.tools.verify.fleet.items import SourceItem
from cachebus.tools.verify.fleet.reading import VERBS as READ_VERBS
from cachebus.tools.verify.fleet.writing import VERBS as WRITE_VERBS
from cachebus.tools.verify.target.testbed import InjectedFault

LINES_MAX = 40
"""The most lines of one explanation: the latest are kept."""
AROUND_S = 10.0
"""How far the explanation of a moment reaches, before and after it."""
Known = Sequence[tuple[int, int, float]]
"""What a node had applied: epoch, seq and since when, in order."""


@dataclass(frozen=True)
class Explainer:
    """Explains findings in one history."""

    items: Sequence[SourceItem]
    writes: Sequence[Write]
    applied: Callable[[str], Known]
    """What a node had applied, by node and life."""
    lives: Mapping[str, tuple[float, float]]
    """From when until when each process ran."""
    faults: Sequence[InjectedFault]
    disturbances: Callable[[str], Sequence[tuple[int, float, float]]]
    """What a node noticed itself, by node and life: kind, from when, until when."""

    def explain_read(self, stale: StaleRead) -> tuple[str, ...]:
        """What led to a stale read. Times are seconds from the read's beginning."""
        write = self._missed(stale)
        zero_s = stale.started_s
        since_s = min(write.called_s, zero_s) if write else zero_s
        lines = [] if write is None else [_line(write.visible_from_s - zero_s, _wrote(write, self.items[write.item]))]
        lines += [
            _line(
                zero_s - zero_s,
                f"node {stale.node}: {READ_VERBS[stale.verb]} of {self.items[stale.item]} gave version {stale.version}",
            )
        ]
        for node, (began_s, ended_s) in sorted(self.lives.items()):
            if began_s <= zero_s < ended_s:
                lines.append(f"           node {node} {self._knew(node, zero_s, write)}")
        return (*lines, *self._broken(since_s, zero_s, zero_s))

    def explain_loads(self, first: ItemLoad, second: ItemLoad, before_s: float) -> tuple[str, ...]:
        """Two loads, and what happened from `before_s` before the first: writes of the item, disturbances of the nodes,
        and faults. Times are seconds from the first load's beginning."""
        zero_s, since_s = first.began_s, first.began_s - before_s
        around = [*self._of_item(first.item, since_s, second.began_s)]
        for node in dict.fromkeys((first.node, second.node)):
            around += self._of_node(node, since_s, second.began_s)
        loads = [
            (load.began_s, load.ended_s, f"node {load.node} loads, and reads version {load.version}")
            for load in (first, second)
        ]
        lines = [
            _line(from_s - zero_s, f"{what}, until {until_s - zero_s:+.3f} s" if until_s else what)
            for from_s, until_s, what in sorted([*sorted(around)[-LINES_MAX:], *loads])
        ]
        return (*lines, *self._broken(since_s, second.began_s, zero_s))

    def explain_moment(self, node: str, at_s: float) -> tuple[str, ...]:
        """The disturbances of a node around a moment, and the faults. Times are seconds from the moment."""
        began_s, since_s, until_s = self.lives[node][0], at_s - AROUND_S, at_s + AROUND_S
        lines = [
            _line(from_s - at_s, f"{what}, until {to_s - at_s:+.3f} s" if to_s else what)
            for from_s, to_s, what in sorted(self._of_node(node, since_s, until_s))[-LINES_MAX:]
        ]
        lines.insert(0, _line(began_s - at_s, f"node {node} began"))
        return (*lines, *self._broken(since_s, until_s, at_s))

    def _of_item(self, item: int, since_s: float, before_s: float) -> Iterator[tuple[float, float, str]]:
        for write in self.writes:
            ended_s = max(write.returned_s, write.failed_s)
            if write.item == item and write.called_s <= before_s and (not ended_s or ended_s >= since_s):
                yield (
                    write.called_s,
                    ended_s,
                    f"node {write.node}: {WRITE_VERBS[write.verb]} for version {write.version}",
                )

    def _of_node(self, node: str, since_s: float, before_s: float) -> Iterator[tuple[float, float, str]]:
        applied = [entry for entry in self.applied(node) if since_s <= entry[2] <= before_s]
        for epoch, seq, at_s in applied[:1] + applied[1:][-1:]:  # what lies between explains nothing
            yield at_s, 0.0, f"node {node} has applied {epoch:016x}.{seq}"
        for kind, from_s, until_s in _joined(self.disturbances(node)):
            if kind != LATE and from_s <= before_s and until_s >= since_s:
                yield from_s, until_s, f"node {node} {DISTURBANCES[kind]}"

    def _broken(self, since_s: float, until_s: float, zero_s: float) -> Iterator[str]:
        for done in self.faults:
            if done.from_s <= until_s and done.until_s >= since_s:
                where = f"node {done.node}" if done.node else "the server"
                yield _line(done.from_s - zero_s, f"{done.fault} of {where}, until {done.until_s - zero_s:+.3f} s")

    def _missed(self, stale: StaleRead) -> Write | None:
        fitting = [
            w
            for w in self.writes
            if w.item == stale.item and w.version >= stale.missed and 0 < w.visible_from_s < stale.started_s
        ]
        return min(fitting, key=lambda write: write.visible_from_s, default=None)

    def _knew(self, node: str, at_s: float, write: Write | None) -> str:
        known = self.applied(node)
        place = bisect_right(known, at_s, key=lambda entry: entry[2])
        if not place:
            return "knew nothing yet"
        epoch, seq, _ = known[place - 1]
        told = f"had applied {epoch:016x}.{seq}"
        if write is None or not write.epoch:
            return told
        if epoch != write.epoch:
            return f"{told}: another epoch than the write's"
        return f"{told}: " + ("the write too" if seq >= write.seq else f"{write.seq - seq} short of the write")


def _joined(spans: Sequence[tuple[int, float, float]]) -> Iterator[tuple[int, float, float]]:
    """Those of one kind that follow each other at once, as one."""
    open_by_kind = dict[int, tuple[float, float]]()
    for kind, from_s, until_s in spans:
        since_s, last_s = open_by_kind.get(kind, (from_s, from_s))
        if from_s > last_s:
            yield kind, since_s, last_s
            since_s = from_s
        open_by_kind[kind] = since_s, until_s
    for kind, (since_s, last_s) in open_by_kind.items():
        yield kind, since_s, last_s


def _wrote(write: Write, item: SourceItem) -> str:
    became = "had returned" if write.returned_s else "was left, and its guard is over"
    event = f" as {write.epoch:016x}.{write.seq}" if write.epoch else ""
    return f"node {write.node}: {WRITE_VERBS[write.verb]}, for version {write.version} of {item}, {became}{event}"


def _line(seconds: float, text: str) -> str:
    return f"{seconds:+9.3f} s {text}"
