"""The bus on Redis: the scripts publish, this listens; what it misses is in the log.

A subscription can be dead while its socket looks alive, so it is pinged while nothing else is heard. Losing it
costs no promise: the probe of the counter in L2 finds what it did not bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cachebus.clock import Clock
from cachebus.errors import BusUnavailable, L2Unavailable
from cachebus.ports import Listener
from cachebus.resp import Address, Subscriber

PING_EVERY_S = 1.0


class RedisBus:
    """A `Bus` over one subscription to the channels of all shards."""

    in_store = True

    def __init__(
        self, address: Address, channels: Sequence[str], listener: Listener,
        *, timeout_s: float, connect_timeout_s: float, clock: Clock,
    ) -> None:  # fmt: skip
        self._address = address
        self._shards = {channel.encode(): shard for shard, channel in enumerate(channels)}
        self._listener = listener
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._subscriber: Subscriber | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connecting = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """Whether events can arrive now."""
        return self._subscriber is not None and not self._subscriber.closed

    async def connect(self) -> None:
        """Subscribe to every shard's channel; `BusUnavailable` names host and port."""
        async with self._connecting:
            if self.connected:
                return
            subscriber = None
            try:
                subscriber = await Subscriber.open(
                    self._address,
                    timeout_s=self._timeout_s,
                    connect_timeout_s=self._connect_timeout_s,
                    clock=self._clock,
                    on_push=self._on_push,
                )
                await subscriber.subscribe(*self._shards)
            except BaseException as error:  # cancellation too: nobody else knows of the socket yet
                if subscriber is not None:
                    subscriber.close()
                if isinstance(error, L2Unavailable):
                    raise BusUnavailable(str(error)) from error
                raise
            self._subscriber = subscriber
            self._ping_later()

    def _on_push(self, channel: bytes, message: bytes) -> None:
        shard = self._shards.get(channel)
        if shard is not None:
            self._listener(shard, message)

    def _ping_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()  # one of the connection before: else each reconnection would add a ping
        self._timer = asyncio.get_running_loop().call_later(PING_EVERY_S, self._ping)

    def _ping(self) -> None:
        """An unanswered ping makes the connection close itself after its time-out, and the supervisor open another."""
        if self._subscriber is not None and not self._subscriber.closed:
            self._subscriber.ping().add_done_callback(_heard)
            self._ping_later()

    async def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        if self._subscriber is not None:
            self._subscriber.close()

    async def publish(self, shard: int, message: bytes) -> None:
        """Nothing to do: the script that gave the event its seq published it in the same step."""


def _heard(answer: asyncio.Future[object]) -> None:
    if not answer.cancelled():
        answer.exception()
