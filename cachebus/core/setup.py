"""How a node is set up."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from cachebus.core.ports import About
from cachebus.core.shard import MAX_INVALIDATED_SCOPES


class NodeSetup(NamedTuple):
    """What a node is told of itself when it is made."""

    name: str
    """For people: its id is made of it."""
    shards: int
    bound_s: float
    guard_max_s: float = 0.0
    keep_without_l2: bool = True
    max_invalidated_scopes: int = MAX_INVALIDATED_SCOPES

    @property
    def about(self) -> About:
        """What it says of itself in its row."""
        bound_ms, guard_ms = ceil(self.bound_s * 1000), ceil(self.guard_max_s * 1000)
        return About(bound_ms, guard_ms, keeps_without_l2=self.keep_without_l2)
