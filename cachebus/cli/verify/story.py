"""The telling part of a history: a read, the write that it missed, what each node knew, and what was broken then."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cachebus.cli.verify.history import Stale, Write
from cachebus.cli.verify.items import Item
from cachebus.cli.verify.reading import VERBS as READ_VERBS
from cachebus.cli.verify.stage import Done
from cachebus.cli.verify.writing import VERBS as WRITE_VERBS

Known = Sequence[tuple[int, int, float]]
"""A node's knowledge: epoch, seq and since when, in order."""


@dataclass(frozen=True)
class Teller:
    """Tells stories of one history."""

    items: Sequence[Item]
    writes: Sequence[Write]
    applied: Callable[[str], Known]
    """By node and life."""
    lives: Mapping[str, tuple[float, float]]
    """From when until when each lived."""
    faults: Iterable[Done]

    def of_read(self, stale: Stale) -> tuple[str, ...]:
        """What led to a stale read, a line each; times are seconds from the read's beginning."""
        write = self._missed(stale)
        zero_s = stale.started_s
        since_s = min(write.called_s, zero_s) if write else zero_s
        lines = [] if write is None else [_line(write.returned_s - zero_s, _wrote(write, self.items[write.item]))]
        lines += [
            _line(zero_s - zero_s, f"node {stale.node}: {READ_VERBS[stale.verb]} of {self.items[stale.item]} "
                                   f"gave version {stale.version}")
        ]  # fmt: skip
        for node, (began_s, ended_s) in sorted(self.lives.items()):
            if began_s <= zero_s < ended_s:
                lines.append(f"           node {node} {self._knew(node, zero_s, write)}")
        for done in self.faults:
            if done.from_s <= zero_s and done.until_s >= since_s:
                where = f"node {done.node}" if done.node else "the server"
                lines.append(
                    _line(done.from_s - zero_s, f"{done.fault} of {where}, until {done.until_s - zero_s:+.3f} s")
                )
        return tuple(lines)

    def _missed(self, stale: Stale) -> Write | None:
        fitting = [
            w for w in self.writes
            if w.item == stale.item and w.version >= stale.missed and 0 < w.returned_s < stale.started_s
        ]  # fmt: skip
        return min(fitting, key=lambda write: write.returned_s, default=None)

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


def _wrote(write: Write, item: Item) -> str:
    event = f" as {write.epoch:016x}.{write.seq}" if write.epoch else ""
    return f"node {write.node}: {WRITE_VERBS[write.verb]}, for version {write.version} of {item}, had returned{event}"


def _line(seconds: float, text: str) -> str:
    return f"{seconds:+9.3f} s {text}"
