"""The state of all nodes at this moment, from the ticks that they send."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cachebus.tools.harness.messages import TICK_S, Tick

WINDOW_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class BoardRow:
    """One node over the last second. Rates a second, shares of reads 0-1."""

    node: int
    requests: float
    l1_share: float
    l2_share: float
    loads: float
    applied: int
    behind: int
    """Events that other nodes have applied and this one has not."""
    lease_left_s: float
    state: str


@dataclass(frozen=True, slots=True)
class View:
    """All that the screen shows."""

    title: str
    coherent: bool
    progress: float
    """0-1."""
    elapsed_s: float
    rows: list[BoardRow]


class Board:
    """Collects the ticks of the last second."""

    def __init__(self, nodes: int) -> None:
        length = 1 + round(WINDOW_S / TICK_S)
        self._ticks = [deque([Tick(node=node, at_s=0.0)], maxlen=length) for node in range(1, nodes + 1)]

    def add(self, tick: Tick) -> None:
        """Take in a node's latest figures."""
        ticks = self._ticks[tick.node - 1]
        if ticks[0].at_s == 0.0:
            ticks.clear()
        ticks.append(tick)

    @property
    def latest(self) -> list[Tick]:
        """The last tick of every node."""
        return [ticks[-1] for ticks in self._ticks]

    @property
    def head(self) -> int:
        """The highest seq that any node has applied."""
        return max(tick.applied for tick in self.latest)

    @property
    def accesses(self) -> int:
        """How many accesses all nodes have made so far."""
        return sum(tick.accesses for tick in self.latest)

    @property
    def over(self) -> bool:
        """Whether every node is at the end of its accesses."""
        return all(tick.over for tick in self.latest)

    def rows(self, state: Callable[[int], str]) -> list[BoardRow]:
        """One row for each node. `state`: gives a word about a node."""
        head = self.head
        return [_row(ticks[0], ticks[-1], head, state(node)) for node, ticks in enumerate(self._ticks, 1)]


def _row(then: Tick, now: Tick, head: int, state: str) -> BoardRow:
    seconds = now.at_s - then.at_s
    reads = now.reads - then.reads

    def share(part: int) -> float:
        return part / reads if reads else 0.0

    def rate(count: int) -> float:
        return count / seconds if seconds else 0.0

    return BoardRow(
        node=now.node,
        requests=rate(now.accesses - then.accesses),
        l1_share=share(now.l1_hits - then.l1_hits),
        l2_share=share(now.l2_hits - then.l2_hits),
        loads=rate(now.loads - then.loads),
        applied=now.applied,
        behind=head - now.applied,
        lease_left_s=now.lease_left_s,
        state=state,
    )
