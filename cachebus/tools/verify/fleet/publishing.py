"""Faults of a node's own publishing on Kafka: nothing is sent, everything twice, or in another order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from cachebus.base.clock import Clock
from cachebus.tools.verify.fleet import messages

REORDERED: Final = 3
"""Messages that are published together, in reverse order."""

Publish = Callable[[int, bytes], Awaitable[None]]


class FaultyPublisher:
    """Replaces the `publish` of a bus, and calls it; for so many seconds it does so wrongly, as ordered."""

    def __init__(self, bus: Any, clock: Clock) -> None:
        self._publish: Publish = bus.publish
        self._clock = clock
        self._how, self._until_s = "", float("-inf")
        self._kept: list[tuple[int, bytes]] = []
        self._late: set[asyncio.Future[None]] = set()
        bus.publish = self

    def set_mode(self, how: str, seconds: float) -> None:
        """Misbehave from now on for so long. `how`: MUTE, TWICE or SWAP."""
        self._how, self._until_s = how, self._clock() + seconds
        asyncio.get_running_loop().call_later(seconds, self._send_kept)

    async def __call__(self, shard: int, message: bytes) -> None:
        """Publish, or misbehave."""
        how = self._how if self._clock() < self._until_s else ""
        if how == messages.MUTE:
            return
        if how == messages.SWAP:
            self._kept.append((shard, message))
            if len(self._kept) < REORDERED:
                return
            kept, self._kept = self._kept, []
            for one in reversed(kept):
                await self._publish(*one)
            return
        await self._publish(shard, message)
        if how == messages.TWICE:
            await self._publish(shard, message)

    def _send_kept(self) -> None:
        """Publish the messages that are kept to be reordered."""
        kept, self._kept = self._kept, []
        for one in kept:
            task = asyncio.ensure_future(self._publish(*one))
            self._late.add(task)  # a task that nobody holds may be collected
            task.add_done_callback(self._late.discard)
