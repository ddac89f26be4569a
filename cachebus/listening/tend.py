"""A shard's turns: connect, probe, catch up, then pause until the next turn is due or something is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cachebus.base.backoff import Backoff
from cachebus.core.ports import Bus
from cachebus.errors import BusUnavailable, L2Unavailable, ProtocolMismatch
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

    async def step(self, index: int) -> None:
        """Take one turn. A probe that fails costs only time: leases lapse by themselves, and whoever reads then has L2
        judge, or loads from the source."""
        try:
            await self._prober.reach(index)
            await self._turn(index)
        except L2Unavailable as error:
            self._outages.lost("L2", index, str(error))
            if self._prober.refuses(index, str(error)):  # for a connection `reach` waits
                pauses = self._pauses_of(index)
                await asyncio.sleep(pauses.next_s())
                pauses.longer()
        except ProtocolMismatch as error:
            self._outages.refused(index, str(error))
            await asyncio.sleep(self._turn_s)

    async def _turn(self, index: int) -> None:
        self._attention.begin_turn(index)
        await self._prober.probe(index)
        self._outages.back("L2", index)
        self._pauses_of(index).reset()
        self._after_probe(index)
        if self._attention.wants_probe(index):
            return  # the probe was sent before the event came: it did not tell of it
        try:
            async with asyncio.timeout(self._turn_s):
                await self._attention.wait(index)
        except TimeoutError:
            return
        await self._prober.heal(index)

    def _pauses_of(self, index: int) -> Backoff:
        return self._pauses.setdefault(index, Backoff())


class Ears:
    """Keeps a shard's events coming in."""

    def __init__(self, bus: Bus, attention: Attention, outages: Outages) -> None:
        self._bus = bus
        self._attention = attention
        self._outages = outages

    async def step(self, index: int) -> None:
        """Wait until the shard's events may not arrive any more, and listen anew."""
        await self._bus.deaf(index)
        try:
            await self._bus.listen(index)
        except BusUnavailable as error:
            self._outages.lost("bus", index, str(error))
            return
        self._outages.back("bus", index)
        self._attention.nudge(index)  # some may have gone by meanwhile
