"""Scopes and tags of whose invalidation this node does not know whether it happened: its caller was cancelled, or got
no answer.

What the node holds in them, and what is under way, is not believed any more, as if the invalidation had been applied.
But it has no seq, and a mark by a guessed one would hide for good what L2 believes, where it has never happened. So a
doubt goes by the order of things on this node, as one of a key does:

1. What was held, or had begun, before it is not believed.
2. What comes from L2 is, but not judged by this node's own marks, which may lack it: until a probe that was sent later
   has renewed the lease, L2 judges for itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

DOUBTS_MAX: Final = 1000
"""More than these at a time cost the node all that it holds of the shard."""


class Doubts:
    """Those of one shard."""

    __slots__ = ("_all_s", "_latest_s", "noted", "scopes")

    def __init__(self) -> None:
        self.scopes: dict[str, tuple[int, float]] = {}
        """By name: the count of the shard's drops at its latest doubt, and when that was."""
        self._latest_s = self._all_s = float("-inf")
        self.noted = False
        """Whether there is any: asked first, as it costs least."""

    def note(self, scopes: Iterable[str], count: int, now_s: float) -> bool:
        """Doubt these from now on. False where they are too many: nothing of the shard may be believed then."""
        self._latest_s, self.noted = now_s, True
        self.scopes.update(dict.fromkeys(scopes, (count, now_s)))
        if len(self.scopes) <= DOUBTS_MAX:
            return True
        self.scopes.clear()
        self._all_s = now_s  # of whatever comes from L2 marks may be missing, until a later probe
        return False

    def cover(self, scopes: Iterable[str], count: int) -> bool:
        """Whether what lies in any of these was doubted since the shard had counted so many drops."""
        if not self.scopes:
            return False
        return any(self.scopes.get(name, (0, 0.0))[0] > count for name in scopes)

    def open(self, scopes: Iterable[str], probed_s: float) -> bool:
        """Whether any of these was doubted since the probe behind the lease was sent, so that marks may be missing."""
        if not self.noted or self._latest_s < probed_s:
            return False
        return self._all_s >= probed_s or any(
            self.scopes.get(name, (0, float("-inf")))[1] >= probed_s for name in scopes
        )

    def settle(self, probed_s: float) -> None:
        """Nothing is left of what was before then, and all marks are those of a probe that was sent later."""
        self.scopes = {name: doubt for name, doubt in self.scopes.items() if doubt[1] >= probed_s}
        self.noted = bool(self.scopes) or self._all_s >= probed_s
