"""Running a script where its shard is, in a Cluster that may just be moving it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from cachebus.base.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp import Connection, Links, Reads, Script, leads_elsewhere, place_in

Send = Callable[[Connection], Awaitable[Any]]
Leads = Callable[[L2Unavailable], bool]
HOPS_MAX: Final = 8
PAUSE_S: Final = 0.01


class Follower:
    """Sends a command on to where the servers say. None of their refusals means that anything was done, so sending it
    again repeats nothing. `hops` counts them by shard."""

    def __init__(self, links: Links[Connection], clock: Clock, timeout_s: float) -> None:
        self._links = links
        self._clock = clock
        self._timeout_s = timeout_s
        self.hops = [0] * len(links.by_shard)

    async def run(
        self,
        shard: int,
        send: Send,
        at_once: tuple[Any, ...],
        reads: Reads,
        began_s: float,
        leads: Leads = leads_elsewhere,
    ) -> Any:
        """What `send` gives on the right connection; `L2Unavailable` when it is not found in time, whatever becomes of
        the servers that are named. `at_once`: the same as one command, whose reply `reads` reads, for a server that
        must be told in the command before that it is meant. `began_s`: since when the call waits. `leads`: whether a
        refusal says that nothing was done, and may pass."""
        until_s = began_s + self._timeout_s
        connection = self._links.of(shard)
        try:
            return await send(connection)
        except L2Unavailable as error:
            refused = self._elsewhere(shard, error, leads)
        try:
            async with asyncio.timeout(max(0.0, until_s - self._clock())):
                return await self._sent_on(shard, connection, send, at_once, reads, refused, leads)
        except TimeoutError:
            raise L2Unavailable(f"sent elsewhere, and no answer in {self._timeout_s:g} s: {refused}") from None

    async def _sent_on(
        self,
        shard: int,
        connection: Connection,
        send: Send,
        at_once: tuple[Any, ...],
        reads: Reads,
        refused: L2Unavailable,
        leads: Leads,
    ) -> Any:
        hops = 0  # since the last pause: a slot that is being moved may send to and fro as long as it lasts
        while True:
            word = str(refused).partition(" ")[0]
            place = place_in(refused) if word in ("MOVED", "ASK") else None
            hops = 0 if place is None else hops + 1
            if hops > HOPS_MAX:
                raise L2Unavailable(f"sent from server to server {HOPS_MAX} times")
            try:
                if place is None:  # a part of the keys has moved
                    await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))
                elif word == "MOVED":
                    await self._links.follow(shard, *place, connection)
                else:
                    async with self._links.aside(shard, *place) as connection:
                        return await _asking(connection, at_once, reads)
                connection = self._links.of(shard)
                return await send(connection)
            except L2Unavailable as error:
                refused = self._elsewhere(shard, error, leads)

    def _elsewhere(self, shard: int, error: L2Unavailable, leads: Leads) -> L2Unavailable:
        """Count a refusal that leads elsewhere; raise any other error."""
        if not leads(error):
            raise error
        self.hops[shard] += 1
        return error


def leads_takeover(error: L2Unavailable) -> bool:
    """`leads_elsewhere` for a takeover, which begins by taking away all keys of its shard at once: a server that is yet
    to be given the whole slot refuses that, and nothing was done."""
    return leads_elsewhere(error) or "access a non local key" in str(error)


async def _asking(connection: Connection, command: tuple[Any, ...], reads: Reads) -> Any:
    # Both are written in one go, without a wait in between: the word counts for the very next command.
    word, answer = connection.call("ASKING"), connection.call(*command, reads=reads)
    await word
    return await answer


def as_command(script: Script, keys: tuple[str, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A script with its source, as one command."""
    return "EVAL", script.source, len(keys), *keys, *args
