"""A route that others must be asked for: when they are asked, by whom, and how often."""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from typing import Any, Final

from cachebus.base.backoff import Backoff
from cachebus.base.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.connection import Connection
from cachebus.resp.replies import Misshapen, Reads
from cachebus.resp.route import Route
from cachebus.resp.tasks import ended, heard, shared

ASK_S: Final = 1.0
"""A Sentinel or Cluster node that does not say where the primaries are in this time is passed over."""
LOOK_AGAIN_S: Final = 0.8
"""The pause after a look at which somebody answered; after one at which nobody did it grows, up to 2 s."""
LOOK_MAX_S: Final = 4.0
"""What that pause grows to, an eighth of a search that finds nothing new: the well pay little for who stays away."""

HostPort = tuple[str, int]


class AskedRoute(Route):
    """A route that others must be asked for: by one look at a time, with a pause after each."""

    def __init__(self, shards: int, connect_timeout_s: float, clock: Clock) -> None:
        super().__init__(shards)
        self._timeout_s = min(connect_timeout_s, ASK_S)
        self._clock = clock
        self._looking: asyncio.Task[None] | None = None
        self._looked_s = self._next_s = self._same_since_s = float("-inf")
        self._pauses = Backoff()

    async def look(self, since_s: float) -> None:
        """See `Route.look`."""
        while self._looked_s < since_s:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(), name="cachebus-route")
                self._looking.add_done_callback(heard)
            await shared(self._looking)

    async def _look(self) -> None:
        await asyncio.sleep(max(0.0, self._next_s - self._clock()))
        began_s, before = self._clock(), list(self.known)
        if began_s > self._next_s + LOOK_AGAIN_S:  # nobody has looked for a while
            self._same_since_s = began_s
        try:
            places, sure = await self._found()
        except L2Unavailable:
            self._next_s = self._clock() + self._pauses.next_s()
            self._pauses.longer()
            raise
        self._pauses.reset()
        self._looked_s = began_s
        self._learn(places, sure=sure)
        now_s = self._clock()
        if self.known != before:
            self._same_since_s = now_s
        pause_s = min(LOOK_MAX_S, max(LOOK_AGAIN_S, (now_s - self._same_since_s) / 8))
        self._next_s = now_s + pause_s * random.uniform(0.5, 1.0)

    @abstractmethod
    async def _found(self) -> tuple[list[Address | None], bool]:
        """The primaries by shard, and whether that outweighs what they do themselves; `L2Unavailable`."""

    async def _asked(self, whom: Address, question: tuple[str, ...], reads: Reads) -> Any:
        """The answer to a question, over a connection of its own; `L2Unavailable`."""
        connection = await Connection.open(
            whom, timeout_s=self._timeout_s, connect_timeout_s=self._timeout_s, clock=self._clock
        )
        try:
            return await connection.call(*question, reads=reads)
        finally:
            connection.close()

    def stop(self) -> None:
        """See `Route.stop`."""
        if self._looking is not None:
            self._looking.cancel()

    async def close(self) -> None:
        """See `Route.close`."""
        await ended(self._looking)


def port_of(port: Any) -> int:
    """A port in a reply; `Misshapen` for what is none."""
    if not isinstance(port, int) or not 0 < port < 65536:
        raise Misshapen("no port")
    return port
