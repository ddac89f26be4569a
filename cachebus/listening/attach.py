"""The start: connect, listen, and only then read where every shard is, so that no event falls in between."""

from __future__ import annotations

import asyncio

from cachebus.base.backoff import Backoff
from cachebus.base.budget import Late
from cachebus.core.node import Node
from cachebus.core.ports import Bus, Store
from cachebus.errors import BusUnavailable, L2Unavailable
from cachebus.listening.outages import Outages
from cachebus.listening.probe import Prober
from cachebus.reading.refusals import PASSING
from cachebus.resp import NoPrimary, ended


def _passes(error: L2Unavailable) -> bool:
    return isinstance(error, Late | NoPrimary) or any(word in str(error) for word in PASSING)


class Attachment:
    """How a node comes to its fleet."""

    def __init__(self, node: Node, store: Store, bus: Bus, prober: Prober, outages: Outages) -> None:
        self._node = node
        self._store = store
        self._bus = bus
        self._prober = prober
        self._outages = outages
        self._refusals: dict[int, str] = {}
        """By shard: why the last attempt failed, of those that go on."""
        self._opened = 0
        """How many connections there were when the start was over."""

    @property
    def reconnects(self) -> int:
        """How many connections to L2 or the bus were opened since the start."""
        return max(0, self._store.opened + self._bus.opened - self._opened)

    async def attach(self, timeout_s: float, sooner_s: float) -> None:
        """Attach all shards at once.

        What can't be had in `timeout_s` is left to the heartbeat, as long as any shard is there: those that are wait
        for the others `sooner_s`. `L2Unavailable` or `BusUnavailable` where none is; `ProtocolMismatch`.
        """
        attaching = {
            asyncio.create_task(self._attach_one(shard.index), name="cachebus-attach"): shard.index
            for shard in self._node.shards
        }
        try:
            troubles = await self._troubles_of(attaching, timeout_s, sooner_s)
        finally:
            await ended(*attaching)
        if len(troubles) == len(attaching):
            raise min(troubles.items())[1]
        for index, trouble in troubles.items():
            self._outages.lost("L2", index, str(trouble))
        self._opened = self._store.opened + self._bus.opened

    async def _troubles_of(
        self, attaching: dict[asyncio.Task[None], int], timeout_s: float, sooner_s: float
    ) -> dict[int, Exception]:
        """Wait for the tasks as long as it is worth it; by shard what is wrong with those that are not there."""
        began_s, lacking, troubles = self._node.clock(), dict(attaching), dict[int, Exception]()
        while lacking:
            some = len(lacking) + len(troubles) < len(attaching)
            left_s = began_s + (min(sooner_s, timeout_s) if some else timeout_s) - self._node.clock()
            done, _ = await asyncio.wait(lacking, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in done:
                index = lacking.pop(task)
                try:
                    task.result()
                except (L2Unavailable, BusUnavailable) as error:
                    troubles[index] = error
        for index in lacking.values():
            troubles[index] = L2Unavailable(self._refusals.get(index) or f"no answer in {timeout_s:g} s")
        return troubles

    async def _attach_one(self, index: int) -> None:
        """Goes on where a server accepts and then is silent or late, as one that many nodes or shards come to at once,
        or refuses for a reason that passes."""
        pauses = Backoff()
        while True:
            began = False
            try:
                await self._store.reach(index)
                await self._bus.listen(index)
                began = True
                await self._prober.begin(index, "start")
            except L2Unavailable as error:
                if not _passes(error) and (not began or self._store.reaches(index)):
                    raise
                self._refusals[index] = str(error)
                await asyncio.sleep(pauses.next_s())
                pauses.longer()
            else:
                return
