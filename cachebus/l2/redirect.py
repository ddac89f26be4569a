"""Running a script where its shard is, in a Cluster that may just be moving it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from cachebus.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp import Connection, Links, Reads, Script, leads_elsewhere, place_in

Send = Callable[[Connection], Awaitable[Any]]
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

    async def run(self, shard: int, send: Send, at_once: tuple[Any, ...], reads: Reads) -> Any:
        """What `send` gives on the right connection; `L2Unavailable` when it is not found in time, whatever becomes of
        the servers that are named. `at_once`: the same as one command, whose reply `reads` reads, for a server that
        must be told in the command before that it is meant."""
        until_s = self._clock() + self._timeout_s
        try:
            return await send(self._links.of(shard))
        except L2Unavailable as error:
            refused = self._elsewhere(shard, error)
        try:
            async with asyncio.timeout(max(0.0, until_s - self._clock())):
                return await self._sent_on(shard, send, at_once, reads, refused)
        except TimeoutError:
            raise L2Unavailable(f"sent elsewhere, and no answer in {self._timeout_s:g} s: {refused}") from None

    async def _sent_on(
        self, shard: int, send: Send, at_once: tuple[Any, ...], reads: Reads, refused: L2Unavailable
    ) -> Any:
        hops = 0
        while True:
            word = str(refused).partition(" ")[0]
            try:
                if word == "MOVED":
                    hops += 1
                    if hops > HOPS_MAX:
                        raise L2Unavailable(f"sent from server to server {HOPS_MAX} times")
                    await self._links.follow(shard, *place_in(refused))
                elif word == "ASK":
                    return await _asking(await self._links.aside(shard, *place_in(refused)), at_once, reads)
                else:  # a part of the keys has moved
                    await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))
                return await send(self._links.of(shard))
            except L2Unavailable as error:
                refused = self._elsewhere(shard, error)

    def _elsewhere(self, shard: int, error: L2Unavailable) -> L2Unavailable:
        """Count a refusal that leads elsewhere; raise any other error."""
        if not leads_elsewhere(error):
            raise error
        self.hops[shard] += 1
        return error


async def _asking(connection: Connection, command: tuple[Any, ...], reads: Reads) -> Any:
    # Both are written in one go, without a wait in between: the word counts for the very next command.
    word, answer = connection.call("ASKING"), connection.call(*command, reads=reads)
    await word
    return await answer


def as_command(script: Script, keys: tuple[str, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A script with its source, as one command."""
    return "EVAL", script.source, len(keys), *keys, *args
