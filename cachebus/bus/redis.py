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
from cachebus.resp import Address, Route, Subscriber

PING_EVERY_S = 1.0


class RedisBus:
    """A `Bus` over a subscription to the channel of every shard, at its primary."""

    in_store = True

    def __init__(
        self, route: Route, channels: Sequence[str], listener: Listener,
        *, timeout_s: float, connect_timeout_s: float, clock: Clock,
    ) -> None:  # fmt: skip
        self._route = route
        self._channels = list(channels)
        self._shards = {channel.encode(): shard for shard, channel in enumerate(channels)}
        self._listener = listener
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._subscribers: dict[Address, tuple[Subscriber, list[int]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._connecting = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """Whether the events of every shard can arrive now, from where its primary is known to be."""
        wanted = self._wanted()
        return bool(wanted) and all(self._listens(address, shards) for address, shards in wanted.items())

    def _wanted(self) -> dict[Address, list[int]]:
        wanted: dict[Address, list[int]] = {}
        for shard, address in enumerate(self._route.known):
            wanted.setdefault(address, []).append(shard)
        return wanted

    def _listens(self, address: Address, shards: list[int]) -> bool:
        subscriber, listened = self._subscribers.get(address, (None, []))
        return subscriber is not None and not subscriber.closed and listened == shards

    async def connect(self) -> None:
        """Subscribe to every shard's channel; `BusUnavailable` names host and port of what can't be reached, though
        the others are listened to then."""
        async with self._connecting:
            if self.connected:
                return
            try:
                await self._route.find()
            except L2Unavailable as error:
                raise BusUnavailable(str(error)) from error
            wanted = self._wanted()
            for address in [address for address in self._subscribers if address not in wanted]:
                self._drop(address)
            trouble: L2Unavailable | None = None
            for address, shards in wanted.items():
                if self._listens(address, shards):
                    continue
                try:
                    subscriber = await self._subscribed(address, shards)
                except L2Unavailable as error:
                    trouble = trouble or error
                else:
                    self._drop(address)
                    self._subscribers[address] = subscriber, shards
            self._ping_later()
            if trouble is not None:
                raise BusUnavailable(str(trouble)) from trouble

    async def _subscribed(self, address: Address, shards: list[int]) -> Subscriber:
        subscriber = await Subscriber.open(
            address,
            timeout_s=self._timeout_s,
            connect_timeout_s=self._connect_timeout_s,
            clock=self._clock,
            on_push=self._on_push,
        )
        channels = [self._channels[shard] for shard in shards]
        try:
            # Both where there are both: how a shard's events are published is in its meta, and outlives an upgrade.
            if self._route.sharded:
                for channel in channels:  # of different slots: not in one command
                    await subscriber.subscribe(channel, sharded=True)
            await subscriber.subscribe(*channels)
        except BaseException:  # cancellation too: nobody else knows of the socket yet
            subscriber.close()
            raise
        return subscriber

    def _drop(self, address: Address) -> None:
        subscriber, _ = self._subscribers.pop(address, (None, []))
        if subscriber is not None:
            subscriber.close()

    def _on_push(self, channel: bytes, message: bytes) -> None:
        shard = self._shards.get(channel)
        if shard is not None:
            self._listener(shard, message)

    def _ping_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()  # one of the connection before: else each reconnection would add a ping
        self._timer = asyncio.get_running_loop().call_later(PING_EVERY_S, self._ping)

    def _ping(self) -> None:
        """An unanswered ping makes its connection close itself after its time-out, and the supervisor open another."""
        alive = [subscriber for subscriber, _ in self._subscribers.values() if not subscriber.closed]
        for subscriber in alive:
            subscriber.ping().add_done_callback(_heard)
        if alive:
            self._ping_later()

    async def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        for address in list(self._subscribers):
            self._drop(address)

    async def publish(self, shard: int, message: bytes) -> None:
        """Nothing to do: the script that gave the event its seq published it in the same step."""


def _heard(answer: asyncio.Future[object]) -> None:
    if not answer.cancelled():
        answer.exception()
