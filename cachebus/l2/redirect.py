"""Running a script where its shard is, in a Cluster that may just be moving it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from cachebus.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp import Connection, Links, Reads, Script, leads_elsewhere

Send = Callable[[Connection], Awaitable[Any]]
HOPS_MAX: Final = 8
PAUSE_S: Final = 0.01


class Follower:
    """Sends a command on to where the servers say. None of their refusals means that anything was done, so sending it
    again repeats nothing. `hops` counts them by shard."""

    def __init__(self, links: Links, clock: Clock, timeout_s: float) -> None:
        self._links = links
        self._clock = clock
        self._timeout_s = timeout_s
        self.hops = [0] * len(links.by_shard)

    async def run(self, shard: int, send: Send, at_once: tuple[Any, ...], reads: Reads) -> Any:
        """What `send` gives on the right connection; `L2Unavailable` when it is not found in time. `at_once`: the same
        as one command, whose reply `reads` reads, for a server that must be told in the command before that it is
        meant."""
        until_s, hops = self._clock() + self._timeout_s, 0
        while True:
            try:
                return await send(self._links.of(shard))
            except L2Unavailable as error:
                refused = self._elsewhere(shard, error)
            word, _, rest = str(refused).partition(" ")
            if word == "MOVED":
                hops += 1
                if hops > HOPS_MAX:
                    raise L2Unavailable(f"sent from server to server {HOPS_MAX} times") from None
                await self._links.follow(shard, *_place(rest, refused))
                continue
            if word == "ASK":
                try:
                    return await _asking(await self._links.aside(shard, *_place(rest, refused)), at_once, reads)
                except L2Unavailable as error:
                    refused = self._elsewhere(shard, error)
            await self._pause(until_s, refused)  # a part of the keys has moved

    def _elsewhere(self, shard: int, error: L2Unavailable) -> L2Unavailable:
        """Count a refusal that leads elsewhere; raise any other error."""
        if not leads_elsewhere(error):
            raise error
        self.hops[shard] += 1
        return error

    async def _pause(self, until_s: float, refused: L2Unavailable) -> None:
        if self._clock() > until_s:
            raise refused
        await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))


async def _asking(connection: Connection, command: tuple[Any, ...], reads: Reads) -> Any:
    # Both are written in one go, without a wait in between: the word counts for the very next command.
    word, answer = connection.call("ASKING"), connection.call(*command, reads=reads)
    await word
    return await answer


def _place(rest: str, refused: L2Unavailable) -> tuple[str, int]:
    host, _, port = rest.rpartition(" ")[2].rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise refused
    return host.strip("[]"), int(port)


def as_command(script: Script, keys: tuple[str, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A script with its source, as one command."""
    return "EVAL", script.source, len(keys), *keys, *args
