"""Doubts: scopes and tags of which this node does not know whether they were invalidated. Who invalidated them was
cancelled, or got no answer.

A doubt works as if the invalidation had been applied: what the node holds in the scope is not believed any more, nor is
what is under way. But an invalidation has a seq, and a doubt has none. A guessed seq would hide for good what L2
believes, where the invalidation never happened. So a doubt counts by the order of things on this node, as the drop of a
key does:

1. What was held, or had begun, before the doubt is not believed.
2. What comes from L2 later is believed, if L2 has judged it: what this node knows of invalidations may lack this one.
   Once a probe that was sent after the doubt has renewed the lease, the node judges for itself again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

DOUBTS_MAX: Final = 1000
"""More than these at a time cost the node all that it holds of the shard."""


class Doubts:
    """The doubts of one shard."""

    __slots__ = ("_all_s", "_latest_s", "noted", "scopes")

    def __init__(self) -> None:
        self.scopes: dict[str, tuple[int, float]] = {}
        """By scope: how many drops the shard had counted at its latest doubt, and when that was."""
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
        self._all_s = now_s  # of every scope an invalidation may be missing, until a probe that was sent later
        return False

    def cover(self, scopes: Iterable[str], count: int) -> bool:
        """Whether what lies in any of these was doubted since the shard had counted so many drops."""
        if not self.scopes:
            return False
        return any(self.scopes.get(name, (0, 0.0))[0] > count for name in scopes)

    def open(self, scopes: Iterable[str], probed_s: float) -> bool:
        """Whether any of these was doubted since the probe behind the lease was sent, so that invalidations may be
        missing."""
        if not self.noted or self._latest_s < probed_s:
            return False
        return self._all_s >= probed_s or any(
            self.scopes.get(name, (0, float("-inf")))[1] >= probed_s for name in scopes
        )

    def settle(self, probed_s: float) -> None:
        """Forget the doubts from before `probed_s`: a probe that was sent then has told all invalidations."""
        self.scopes = {name: doubt for name, doubt in self.scopes.items() if doubt[1] >= probed_s}
        self.noted = bool(self.scopes) or self._all_s >= probed_s
