"""A bus inside one process: the twin of pub/sub, for tests, trials and `memory://NAME`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

from cachebus.base.clock import monotonic
from cachebus.base.losses import Losses
from cachebus.core.ports import Listener


class MemoryChannel:
    """Where the events of one shard go: to every bus that listens, in the next turn of the loop of each."""

    def __init__(self) -> None:
        self._ears: list[tuple[asyncio.AbstractEventLoop, int, Listener]] = []

    def listen(self, loop: asyncio.AbstractEventLoop, shard: int, listener: Listener) -> None:
        """Begin to hear."""
        self._ears.append((loop, shard, listener))

    def leave(self, listener: Listener) -> None:
        """Hear no more."""
        self._ears = [ear for ear in self._ears if ear[2] is not listener]

    def send(self, message: bytes) -> None:
        """Hand the message to all who listen; a loop that has ended hears nothing."""
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for loop, shard, listener in self._ears:
            if loop is here:
                loop.call_soon(listener, shard, message)
            elif not loop.is_closed():  # another thread's
                loop.call_soon_threadsafe(listener, shard, message)


class MemoryBus:
    """A `Bus` over memory channels, one a shard."""

    store_publishes = True
    hearing = None

    def __init__(self, channels: Sequence[MemoryChannel], listener: Listener) -> None:
        self._channels = channels
        self._listener = listener
        self.connected = False
        self.opened = 0
        self.losses = Losses(monotonic)
        """There are none."""

    def trouble(self, shard: int) -> str:
        """See `Bus.trouble`."""
        return "" if self.connected else "it is not connected"

    async def connect(self) -> None:
        """Listen to every shard."""
        if not self.connected:
            loop = asyncio.get_running_loop()
            for shard, channel in enumerate(self._channels):
                channel.listen(loop, shard, self._listener)
            self.connected = True
            self.opened += 1

    async def listen(self, shard: int) -> None:
        """See `Bus.listen`."""
        await self.connect()

    async def deaf(self, shard: int) -> None:
        """See `Bus.deaf`: memory is heard for ever."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Stop listening."""
        for channel in self._channels:
            channel.leave(self._listener)
        self.connected = False

    async def publish(self, shard: int, message: bytes) -> None:
        """Nothing to do: the store published it in the same step."""

    def answers(self, shard: int, question: str, *, sharded: bool) -> AbstractAsyncContextManager[None]:
        """See `Bus.answers`: they come on the one channel that there is."""
        return nullcontext()
