"""What a node sees that may never be, written down where it is seen: no other node's history is needed to judge it."""

from __future__ import annotations

from typing import Final

from cachebus.tools.verify.fleet.history_log import VERB_SHIFT, Tape
from cachebus.tools.verify.fleet.items import Item

FOREIGN, CHANGED, SHARED, CANCELLED, CLOSED, NO_CYCLE, COUNTED, REFUSED, LONG, DOWN = range(1, 11)
PROMISES: Final = {
    FOREIGN: "G8",
    CHANGED: "equal",
    SHARED: "equal",
    CANCELLED: "own fate",
    CLOSED: "own fate",
    NO_CYCLE: "circle",
    COUNTED: "counter",
    REFUSED: "add",
    LONG: "time",
    DOWN: "up",
}
"""Which promise each breaks."""
TOLD: Final = {
    FOREIGN: "was given version {b} of another item, number {a}",
    CHANGED: "was given version {b} changed",
    SHARED: "was given version {b} with what another caller had put into it",
    CANCELLED: "was cancelled, though nobody cancelled it",
    CLOSED: "was refused as by a cache that is closed, or wrongly set up",
    NO_CYCLE: "asked for itself while it was loaded, and was not told so",
    COUNTED: "stood at {a} after {b} increments",
    REFUSED: "was absent, and could not be added",
    DOWN: "was refused after {a} ms, though nothing was wrong with where it lies",
    LONG: "was waited for for {a} ms, and no source was asked",
}


class Oddities:
    """The tape for them."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def note(self, kind: int, item: Item, at_s: float, *, verb: int = 0, a: int = 0, b: int = 0) -> None:
        """Write one down."""
        self._tape.add(item.number | verb << VERB_SHIFT, kind, a, b, at_s)
