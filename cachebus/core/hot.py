"""Which keys are hot on a node, by L1's own policy: for who wants to begin as warm as this one.

Heat is `freq`, what a hit counts and an eviction takes back; of two that have the same, that is hotter which is in the
main queue, since it was hit before already. What nobody has read since it came in is coldest, and still among them: a
node that has just been warmed hands on what it was told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cachebus.core.details import details
from cachebus.core.node import Node
from cachebus.l1 import Entry
from cachebus.wire.heat import HotKey

FREQ_MAX: Final = 3
RANK_STEP, JUDGE_STEP = 2048, 256
"""So many names are looked at in a step: to see how often each is read, and then whether it may be told."""


class Hottest:
    """The hottest keys of a node, found in steps that hold up nobody; it touches nothing that it looks at."""

    def __init__(self, node: Node, most_names: int, most_bytes: int) -> None:
        """`most_bytes`: what their entries take in all, at most."""
        self._node = node
        self._most_names = most_names
        self._left_bytes = most_bytes
        self.found: list[HotKey] = []
        """From the hottest on."""

    def walk(self) -> Iterator[None]:
        """Find them, one step a turn."""
        main, small = self._node.l1.queued()
        ranks: list[list[str]] = [[] for _ in range(2 * FREQ_MAX + 2)]
        entries = self._node.l1.entries
        for of_main, names in ((1, main), (0, small)):
            for turn, name in enumerate(names):
                entry = entries.get(name)
                if entry is not None:
                    ranks[2 * entry.freq + of_main].append(name)
                if turn % RANK_STEP == RANK_STEP - 1:
                    yield
        now_s = self._node.clock()
        for names in reversed(ranks):
            for turn, name in enumerate(names):
                entry = entries.get(name)
                if entry is not None and self._is_shared(entry, now_s) and not self._add(entry):
                    return
                if turn % JUDGE_STEP == JUDGE_STEP - 1:
                    yield

    def _is_shared(self, entry: Entry, now_s: float) -> bool:
        """Whether L2 has what this entry holds, as far as this node knows."""
        extra = details(entry)
        if not entry.group.fenced or (extra is not None and extra.absent) or now_s >= entry.expires_s:
            return False
        return self._node.stands(entry)

    def _add(self, entry: Entry) -> bool:
        """Whether there was room for it."""
        self._left_bytes -= entry.size
        if len(self.found) >= self._most_names or self._left_bytes < 0:
            return False
        self.found.append(HotKey(entry.key, entry.size))
        return True
