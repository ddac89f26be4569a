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

    def nudge(self, index: int) -> None:
        """Have the shard tended soon: something is missing."""
        self._wanted[index].set()

    def prompt(self, index: int) -> None:
        """Have the shard probed at once, with what is applied by now: somebody waits for this node's position."""
        self._probe_wanted[index] = True
        self._wanted[index].set()

    def begin_turn(self, index: int) -> None:
        """Forget what was asked for so far: the turn that begins now does it."""
        self._wanted[index].clear()
        self._probe_wanted[index] = False

    def wants_probe(self, index: int) -> bool:
        """Whether a probe has been asked for since the turn began."""
        return self._probe_wanted[index]

    async def wait(self, index: int) -> None:
        """Return when something has been asked for since the turn began."""
        await self._wanted[index].wait()

    async def wait_for_next(self, index: int) -> None:
        """Return when something is asked for from now on."""
        self._wanted[index].clear()
        await self._wanted[index].wait()
