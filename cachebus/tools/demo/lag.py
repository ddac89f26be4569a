"""The lag of invalidations: from the call until another node has applied the event."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cachebus.tools.demo.history import Applied, DemoWrite


@dataclass(frozen=True, slots=True)
class Outage:
    """A node that was cut off, and from when until it had caught up, in monotonic seconds."""

    node: int
    from_s: float
    until_s: float

    def parts(self, maker: int, hearer: int, called_s: float, applied_s: float) -> bool:
        """Whether the outage was between the invalidating node and the other one, at that time."""
        return self.node in (maker, hearer) and called_s <= self.until_s and self.from_s <= applied_s


@dataclass(frozen=True, slots=True)
class Lags:
    """Times in seconds over all pairs of an invalidation and a node that did not make it; 0.0 where there are none."""

    pairs: int
    p50_s: float
    p99_s: float
    max_s: float
    outage_max_s: float
    """The longest from or to the node that was cut off. The other figures leave these pairs out."""
    unheard: int
    """Pairs left open by the end of the run."""


def lags(
    writes: Mapping[int, Sequence[DemoWrite]], applied: Mapping[int, Iterable[Applied]], outage: Outage | None
) -> Lags:
    """Measure every invalidation on every other node. `writes`, `applied`: by node."""
    found: list[float] = []
    during: list[float] = [0.0]
    unheard = 0
    for node, known in applied.items():
        history = _by_epoch(known)
        for maker, made in writes.items():
            for write in made if maker != node else ():
                at_s = _applied_at(history, write)
                if at_s is None:
                    unheard += 1
                    continue
                apart = outage is not None and outage.parts(maker, node, write.called_s, at_s)
                (during if apart else found).append(at_s - write.called_s)
    found.sort()
    return Lags(len(found), quantile(found, 0.5), quantile(found, 0.99), quantile(found, 1.0), max(during), unheard)


def quantile(ordered: Sequence[float], q: float) -> float:
    """The value at quantile `q` (0-1) of ordered values; 0.0 of none."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def _by_epoch(known: Iterable[Applied]) -> dict[int, tuple[list[int], list[float]]]:
    history: dict[int, tuple[list[int], list[float]]] = {}
    for epoch, seq, at_s in known:
        seqs, times = history.setdefault(epoch, ([], []))
        seqs.append(seq)
        times.append(at_s)
    return history


def _applied_at(history: Mapping[int, tuple[list[int], list[float]]], write: DemoWrite) -> float | None:
    seqs, times = history.get(write.epoch, ([], []))
    place = bisect_left(seqs, write.seq)
    return times[place] if place < len(times) else None
