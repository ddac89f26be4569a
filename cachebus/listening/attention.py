"""What wakes a shard's turn of the heartbeat before it is due."""

from __future__ import annotations

import asyncio


class Attention:
    """Which shards are to be tended soon, and which are to be probed at once.

    It is made before all who ask for a turn, and before those who take the turns: neither knows the other.
    """

    def __init__(self, shards: int) -> None:
        self._wanted = [asyncio.Event() for _ in range(shards)]
        self._probe_wanted = [False] * shards

    def nudge(self, shard: int) -> None:
        """Have the shard tended soon: something is missing."""
        self._wanted[shard].set()

    def prompt(self, shard: int) -> None:
        """Have the shard probed at once, with what is applied by now: somebody waits for this node's position."""
        self._probe_wanted[shard] = True
        self._wanted[shard].set()

    def begin_turn(self, shard: int) -> None:
        """Forget what was asked for so far: the turn that begins now does it."""
        self._wanted[shard].clear()
        self._probe_wanted[shard] = False

    def wants_probe(self, shard: int) -> bool:
        """Whether a probe has been asked for since the turn began."""
        return self._probe_wanted[shard]

    async def wait(self, shard: int) -> None:
        """Return when something has been asked for since the turn began."""
        await self._wanted[shard].wait()

    async def wait_anew(self, shard: int) -> None:
        """Return when something is asked for from now on."""
        self._wanted[shard].clear()
        await self._wanted[shard].wait()
