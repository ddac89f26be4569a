"""What a node of a run does to its own publishing on Kafka, when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from cachebus.base.clock import Clock
from cachebus.tools.verify.fleet import messages

KEEP: Final = 3

Publish = Callable[[int, bytes], Awaitable[None]]


class FaultyPublisher:
    """Stands in for the `publish` of a bus, and passes on to it; as it is told for so many seconds."""

    def __init__(self, bus: Any, clock: Clock) -> None:
        self._publish: Publish = bus.publish
        self._clock = clock
        self._how, self._until_s = "", float("-inf")
        self._kept: list[tuple[int, bytes]] = []
        self._late: set[asyncio.Future[None]] = set()
        bus.publish = self

    def set_mode(self, how: str, seconds: float) -> None:
        """MUTE, TWICE or SWAP, from now on for so long."""
        self._how, self._until_s = how, self._clock() + seconds
        asyncio.get_running_loop().call_later(seconds, self._let_go)

    async def __call__(self, shard: int, message: bytes) -> None:
        """Publish, or what is done in its place."""
        how = self._how if self._clock() < self._until_s else ""
        if how == messages.MUTE:
            return
        if how == messages.SWAP:
            self._kept.append((shard, message))
            if len(self._kept) < KEEP:
                return
            kept, self._kept = self._kept, []
            for one in reversed(kept):
                await self._publish(*one)
            return
        await self._publish(shard, message)
        if how == messages.TWICE:
            await self._publish(shard, message)

    def _let_go(self) -> None:
        """Those that still wait for others to overtake them."""
        kept, self._kept = self._kept, []
        for one in kept:
            task = asyncio.ensure_future(self._publish(*one))
            self._late.add(task)  # a task that nobody holds may be collected
            task.add_done_callback(self._late.discard)
