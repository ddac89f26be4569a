"""Running a script where its shard is, in a Cluster that may just be moving it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from cachebus.base.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp import Connection, Links, Reads, Script, host_port_in, leads_elsewhere

Send = Callable[[Connection], Awaitable[Any]]
Leads = Callable[[L2Unavailable], bool]
HOPS_MAX: Final = 8
PAUSE_S: Final = 0.01


class FollowedCommand(NamedTuple):
    """What goes to where a shard is."""

    shard: int
    send: Send
    """Sends it over a connection."""
    at_once: tuple[Any, ...]
    """The same as one command, for a server that must be told in the command before that it is meant."""
    reads: Reads | None
    """Reads the reply; None where it is given as it came."""
    leads: Leads = leads_elsewhere
    """Whether a refusal says that nothing was done, and may pass."""


class Follower:
    """Sends a command on to where the servers say. None of their refusals means that anything was done, so sending it
    again repeats nothing. `hops` counts them by shard."""

    def __init__(self, links: Links[Connection], clock: Clock, timeout_s: float) -> None:
        self._links = links
        self._clock = clock
        self._timeout_s = timeout_s
        self.hops = [0] * len(links.by_shard)

    async def run(self, command: FollowedCommand, began_s: float) -> Any:
        """What the command gives on the right connection; `L2Unavailable` when it is not found in time, whatever
        becomes of the servers that are named. `began_s`: since when the call waits."""
        until_s = began_s + self._timeout_s
        connection = self._links.of(command.shard)
        try:
            return await command.send(connection)
        except L2Unavailable as error:
            refused = self._elsewhere(command, error)
        try:
            async with asyncio.timeout(max(0.0, until_s - self._clock())):
                return await self._follow(command, connection, refused)
        except TimeoutError:
            raise L2Unavailable(f"sent elsewhere, and no answer in {self._timeout_s:g} s: {refused}") from None

    async def _follow(self, command: FollowedCommand, connection: Connection, refused: L2Unavailable) -> Any:
        shard = command.shard
        hops = 0  # since the last pause: a slot that is being moved may send to and fro as long as it lasts
        while True:
            word = str(refused).partition(" ")[0]
            host_port = host_port_in(refused) if word in ("MOVED", "ASK") else None
            hops = 0 if host_port is None else hops + 1
            if hops > HOPS_MAX:
                raise L2Unavailable(f"sent from server to server {HOPS_MAX} times")
            try:
                if host_port is None:  # a part of the keys has moved
                    await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))
                elif word == "MOVED":
                    await self._links.follow(shard, *host_port, connection)
                else:
                    async with self._links.aside(shard, *host_port) as connection:
                        return await _asking(connection, command)
                connection = self._links.of(shard)
                return await command.send(connection)
            except L2Unavailable as error:
                refused = self._elsewhere(command, error)

    def _elsewhere(self, command: FollowedCommand, error: L2Unavailable) -> L2Unavailable:
        """Count a refusal that leads elsewhere; raise any other error."""
        if not command.leads(error):
            raise error
        self.hops[command.shard] += 1
        return error


def leads_takeover(error: L2Unavailable) -> bool:
    """`leads_elsewhere` for a takeover, which begins by taking away all keys of its shard at once: a server that is yet
    to be given the whole slot refuses that, and nothing was done."""
    return leads_elsewhere(error) or "access a non local key" in str(error)


async def _asking(connection: Connection, command: FollowedCommand) -> Any:
    # Both are written in one go, without a wait in between: the word counts for the very next command.
    word, answer = connection.call("ASKING"), connection.call(*command.at_once, reads=command.reads)
    await word
    return await answer


def as_command(script: Script, keys: tuple[str, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A script with its source, as one command."""
    return "EVAL", script.source, len(keys), *keys, *args
