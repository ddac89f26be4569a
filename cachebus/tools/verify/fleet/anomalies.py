"""Anomalies: what a node sees that is wrong by itself, such as another tenant's value. No other node's history is
needed to judge it, so it is recorded where it is seen."""

from __future__ import annotations

from typing import Final

from cachebus.tools.verify.fleet.history_log import VERB_SHIFT, HistoryLog
from cachebus.tools.verify.fleet.items import SourceItem

FOREIGN, CHANGED, SHARED, CANCELLED, CLOSED, CYCLE_UNDETECTED, COUNTED_TWICE, ADD_REFUSED, TOO_SLOW, UNAVAILABLE = (
    range(1, 11)
)
PROMISES: Final = {
    FOREIGN: "G8",
    CHANGED: "equal",
    SHARED: "equal",
    CANCELLED: "own fate",
    CLOSED: "own fate",
    CYCLE_UNDETECTED: "circle",
    COUNTED_TWICE: "counter",
    ADD_REFUSED: "add",
    TOO_SLOW: "time",
    UNAVAILABLE: "up",
}
"""The promise that each of them breaks."""
DESCRIPTIONS: Final = {
    FOREIGN: "was given version {b} of another item, number {a}",
    CHANGED: "was given version {b} changed",
    SHARED: "was given version {b} with what another caller had put into it",
    CANCELLED: "was cancelled, though nobody cancelled it",
    CLOSED: "was refused as by a cache that is closed, or wrongly set up",
    CYCLE_UNDETECTED: "asked for itself while it was loaded, and was not told so",
    COUNTED_TWICE: "stood at {a} after {b} increments",
    ADD_REFUSED: "was absent, and could not be added",
    UNAVAILABLE: "was refused after {a} ms, though nothing was wrong with where it lies",
    TOO_SLOW: "was waited for for {a} ms, and no source was asked",
}


class Anomalies:
    """The history log of anomalies."""

    def __init__(self, log: HistoryLog) -> None:
        self._log = log

    def note(self, kind: int, item: SourceItem, at_s: float, *, verb: int = 0, ab: tuple[int, int] = (0, 0)) -> None:
        """Record an anomaly. `ab`: the figures a and b of its description."""
        self._log.add(item.number | verb << VERB_SHIFT, kind, *ab, at_s)
