"""A shard's turns: connect, probe, catch up, then rest until the next turn is due or something is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cachebus.base.backoff import Backoff
from cachebus.core.ports import Bus
from cachebus.errors import BusUnavailable, L2Unavailable
from cachebus.listening.attention import Attention
from cachebus.listening.outages import Outages
from cachebus.listening.probe import Prober


class Tending:
    """Keeps a shard's lease renewed, and what this node knows of it complete."""

    def __init__(
        self,
        prober: Prober,
        attention: Attention,
        outages: Outages,
        after_probe: Callable[[int], object],
        *,
        turn_s: float,
    ) -> None:
        """`after_probe`: is told of each shard that was probed: it may be in another epoch now. `turn_s`: the time
        between two probes, where nothing asks for one sooner."""
        self._prober = prober
        self._attention = attention
        self._outages = outages
        self._after_probe = after_probe
        self._turn_s = turn_s
        self._pauses: dict[int, Backoff] = {}
        """By shard: those after probes that were refused."""

    async def step(self, shard: int) -> None:
        """Take one turn. A probe that fails costs only time: leases lapse by themselves, and whoever reads then has L2
        judge, or loads from the source."""
        try:
            await self._prober.reach(shard)
            await self._turn(shard)
        except L2Unavailable as error:
            self._outages.lost("L2", shard, str(error))
            if self._prober.refuses(shard, str(error)):  # for a connection `reach` waits
                pauses = self._pauses_of(shard)
                await asyncio.sleep(pauses.next_s())
                pauses.longer()

    async def _turn(self, shard: int) -> None:
        self._attention.begin_turn(shard)
        await self._prober.probe(shard)
        self._outages.back("L2", shard)
        self._pauses_of(shard).reset()
        self._after_probe(shard)
        if self._attention.wants_probe(shard):
            return  # the probe was sent before the event came: it did not tell of it
        try:
            async with asyncio.timeout(self._turn_s):
                await self._attention.wait(shard)
        except TimeoutError:
            return
        await self._prober.heal(shard)

    def _pauses_of(self, shard: int) -> Backoff:
        return self._pauses.setdefault(shard, Backoff())


class Ears:
    """Keeps a shard's events coming in."""

    def __init__(self, bus: Bus, attention: Attention, outages: Outages) -> None:
        self._bus = bus
        self._attention = attention
        self._outages = outages

    async def step(self, shard: int) -> None:
        """Wait until the shard's events may not arrive any more, and listen anew."""
        await self._bus.deaf(shard)
        try:
            await self._bus.listen(shard)
        except BusUnavailable as error:
            self._outages.lost("bus", shard, str(error))
            return
        self._outages.back("bus", shard)
        self._attention.nudge(shard)  # some may have gone by meanwhile
