"""Since when rows wait, where their table does not tell: their own times can't be right, or they rest there, and are
due later."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final, NamedTuple

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.worker.source import SENT_FROM_S

SAMPLES: Final = 1000
KNOWN: Final = 10_000
"""So many rows that rest are known, and those that come after them are not."""


class FirstSeen:
    """Since when rows are seen whose own times can't be right, as after a clock was put back. At each look the largest
    id is noted: what has no larger one was there by then, but for one that was committed long after others."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._seen: list[tuple[int, float]] = []

    def age_s(self, first: int | None, last: int | None) -> float:
        """For how long the first of them is seen. `first`, `last`: the smallest and the largest id of those that are
        there now; None if there are none."""
        if first is None or last is None:
            self._seen.clear()
            return 0.0
        now_s = self._clock()
        if not self._seen or last > self._seen[-1][0]:
            self._seen.append((last, now_s))
        if len(self._seen) > SAMPLES:
            del self._seen[1:-1:2]
        self._seen = [(number, at_s) for number, at_s in self._seen if number >= first]
        return now_s - self._seen[0][1]


class RestingRow(NamedTuple):
    """A row that could be neither applied nor set aside."""

    id: int
    waits_for: int
    since_s: float
    """Since when it is due, in Unix seconds; by its table it is so only at the next try."""


class PutOff:
    """The rows that could be neither applied nor set aside, and rest in the table."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, RestingRow] = {}

    @property
    def rows(self) -> list[RestingRow]:
        """Those that are known."""
        return list(self._rows.values())

    def note(self, name: Hashable, row: RestingRow, now_s: float) -> None:
        """The row of this name rests. It may do so once more."""
        if name not in self._rows and len(self._rows) < KNOWN:
            is_real = SENT_FROM_S < row.since_s <= now_s
            self._rows[name] = row if is_real else row._replace(since_s=now_s)

    def done(self, names: Iterable[Hashable]) -> None:
        """These rest no more."""
        if self._rows:
            for name in names:
                self._rows.pop(name, None)

    def seen(self, ids: Iterable[int]) -> float | None:
        """Since when the first waits of those with these ids, in Unix seconds. The others are gone: another relay has
        done them."""
        there = set(ids)
        self._rows = {name: row for name, row in self._rows.items() if row.id in there}
        return min((row.since_s for row in self._rows.values()), default=None)
