"""A route that others must be asked for: when they are asked, by whom, and how often."""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from typing import Any, Final

from cachebus.base.backoff import Backoff
from cachebus.base.clock import Clock
from cachebus.base.ignored import ignore_error
from cachebus.base.log import logger
from cachebus.base.patience import Patience
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.connection import Connection
from cachebus.resp.replies import Misshapen, Reads
from cachebus.resp.route import Route
from cachebus.resp.tasks import ended, shared

ASK_S: Final = 1.0
"""A Sentinel or Cluster node that does not say where the primaries are in this time is passed over."""
REFRESH_S: Final = 0.8
"""The pause after a refresh at which somebody answered; after one at which nobody did it grows, up to 2 s."""
REFRESH_MAX_S: Final = 4.0
"""What that pause grows to, an eighth of a search that finds nothing new: the well pay little for who stays away."""

HostPort = tuple[str, int]


class AskedRoute(Route):
    """A route that others must be asked for: by one refresh at a time, with a pause after each."""

    def __init__(self, shards: int, connect_timeout_s: float, clock: Clock) -> None:
        super().__init__(shards)
        self._timeout_s = min(connect_timeout_s, ASK_S)
        self._clock = clock
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_s = self._next_s = self._same_since_s = float("-inf")
        self._pauses = Backoff()
        self._is_told = False
        """That nobody says where the primaries are, after somebody had."""

    async def refresh(self, since_s: float) -> None:
        """See `Route.refresh`."""
        while self._refreshed_s < since_s:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refresh(), name="cachebus-route")
                self._refreshing.add_done_callback(ignore_error)
            await shared(self._refreshing)

    async def _refresh(self) -> None:
        await asyncio.sleep(max(0.0, self._next_s - self._clock()))
        began_s, before = self._clock(), list(self.known)
        if began_s > self._next_s + REFRESH_S:  # nobody has looked for a while
            self._same_since_s = began_s
        try:
            addresses, sure = await self._found()
        except L2Unavailable as error:
            if self._refreshed_s > float("-inf") and not self._is_told:
                self._is_told = True
                logger.warning("{}", error)
            self._next_s = self._clock() + self._pauses.next_s()
            self._pauses.longer()
            raise
        self._pauses.reset()
        self._is_told = False
        self._refreshed_s = began_s
        self._learn(addresses, sure=sure)
        now_s = self._clock()
        if self.known != before:
            self._same_since_s = now_s
        pause_s = min(REFRESH_MAX_S, max(REFRESH_S, (now_s - self._same_since_s) / 8))
        self._next_s = now_s + pause_s * random.uniform(0.5, 1.0)

    @abstractmethod
    async def _found(self) -> tuple[list[Address | None], bool]:
        """The primaries by shard, and whether that outweighs what they do themselves; `L2Unavailable`."""

    async def _asked(self, whom: Address, question: tuple[str, ...], reads: Reads) -> Any:
        """The answer to a question, over a connection of its own; `L2Unavailable`."""
        connection = await Connection.open(whom, Patience(self._timeout_s, self._timeout_s, self._clock))
        try:
            return await connection.call(*question, reads=reads)
        finally:
            connection.close()

    def stop(self) -> None:
        """See `Route.stop`."""
        if self._refreshing is not None:
            self._refreshing.cancel()

    async def close(self) -> None:
        """See `Route.close`."""
        await ended(self._refreshing)


def port_of(port: Any) -> int:
    """A port in a reply; `Misshapen` for what is none."""
    if not isinstance(port, int) or not 0 < port < 65536:
        raise Misshapen("no port")
    return port
