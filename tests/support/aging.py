"""A cache whose clock is turned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cachebus import Policy
from cachebus.testing import FakeClock, Fleet

D_S = 2.0


class Aging:
    """A fleet whose time passes when the test says so."""

    def __init__(self, fleet: Fleet, clock: FakeClock) -> None:
        self.fleet, self.clock = fleet, clock
        self.nodes = fleet.caches

    async def pass_s(self, seconds: float) -> None:
        """Turn the clock, and let every node's lease be renewed as its heartbeat would have done."""
        self.clock.advance(seconds)
        await self.fleet.probe()


@asynccontextmanager
async def aging(nodes: int = 2, *, keep_without_l2: bool = True, **policies: Policy) -> AsyncIterator[Aging]:
    """A fleet with these policies."""
    clock = FakeClock()
    async with Fleet(
        nodes, clock=clock, staleness_bound_s=D_S, policies=policies, keep_without_l2=keep_without_l2
    ) as fleet:
        yield Aging(fleet, clock)
