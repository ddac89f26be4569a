"""The bus on Redis: the scripts publish, this listens; what it misses is in the log.

A subscription can be dead while its socket looks alive, so it is pinged while nothing else is heard. Losing it
costs no promise: the probe of the counter in L2 finds what it did not bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from cachebus.base.backoff import Attempts
from cachebus.base.ignored import ignore_error
from cachebus.base.log import logger
from cachebus.base.patience import Patience
from cachebus.core.ports import Listener
from cachebus.errors import BusUnavailable, L2Unavailable
from cachebus.resp import Address, Links, Route, Subscriber, host_port_in, leads_elsewhere
from cachebus.wire.heat import HOT_NAMES
from cachebus.wire.inquiry import ANSWER, channel_of_answers

PING_EVERY_S = 1.0


async def subscribed(subscriber: Subscriber, channel: str, *, sharded: bool) -> None:
    """Hear what is published there; with `sharded` also by sharded pub/sub, where the server knows that."""
    plain = subscriber.subscribe(channel)
    if sharded:
        try:
            await subscriber.subscribe(channel, sharded=True)
        except L2Unavailable as error:
            if "unknown command" not in str(error).lower():  # as a server before version 7 says
                raise
    await plain


class RedisBus:
    """A `Bus` over a subscription to the channel of every shard, at its primary."""

    store_publishes = True
    hearing = None

    def __init__(self, route: Route, channels: Sequence[str], listener: Listener, patience: Patience) -> None:
        self._route = route
        self._channels = list(channels)
        self._shards = {channel.encode(): shard for shard, channel in enumerate(channels)}
        self._listener = listener
        self._patience = patience
        self._links: Links[Subscriber] = Links(route, self._open, clock=patience.clock, on_changed=self._changed)
        self.losses = self._links.losses
        self._links.on_lost = lambda why: logger.warning("a connection of the bus was lost: {}", why)
        self._listens: list[Subscriber | None] = [None] * len(channels)
        """By shard: who has confirmed its subscription."""
        self._attempts = [Attempts(patience.clock) for _ in channels]
        """By shard: those to subscribe, where there is a connection."""
        self._stirred = [asyncio.Event() for _ in channels]
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        """Whether the events of every shard can arrive now, from where its primary is known to be."""
        return all(map(self._is_subscribed, range(len(self._channels))))

    def trouble(self, shard: int) -> str:
        """See `Bus.trouble`."""
        return "" if self._is_subscribed(shard) else "its channel is not subscribed to now"

    @property
    def opened(self) -> int:
        """How many connections there have been."""
        return self._links.opened

    def _is_subscribed(self, shard: int) -> bool:
        return self._links.reaches(shard) and self._listens[shard] is self._links.by_shard[shard]

    async def connect(self) -> None:
        """Subscribe to every shard's channel; `BusUnavailable` names host and port of what can't be reached, though
        the others are listened to then. After `close` too."""
        self._links.reopen()
        shards = range(len(self._channels))
        for trouble in await asyncio.gather(*map(self.listen, shards), return_exceptions=True):
            if isinstance(trouble, BaseException):
                raise trouble

    async def listen(self, shard: int) -> None:
        """Subscribe to the shard's channel; `BusUnavailable` names host and port of what can't be reached."""
        try:
            while not self._is_subscribed(shard):
                subscriber = await self._links.reach(shard)
                await self._subscribe(subscriber, shard)
                self._listens[shard] = subscriber
        except L2Unavailable as error:
            raise BusUnavailable(str(error)) from error
        self._links.confirm_primary(shard)
        if self._timer is None:
            self._ping_later()

    async def deaf(self, shard: int) -> None:
        """Returns when the shard's events may not arrive any more."""
        while self._is_subscribed(shard):
            self._stirred[shard].clear()
            await self._stirred[shard].wait()

    async def _subscribe(self, subscriber: Subscriber, shard: int) -> None:
        """Both ways where there are both: how events are published is for the shard's meta to say, upgrade or not."""
        attempts = self._attempts[shard]
        await asyncio.sleep(attempts.wait_s)
        try:
            await subscribed(subscriber, self._channels[shard], sharded=self._route.clustered)
            attempts.succeeded()
        except L2Unavailable as error:
            attempts.failed()
            if not leads_elsewhere(error):
                raise
            await self._links.follow(shard, *host_port_in(error), subscriber)

    async def _open(self, address: Address) -> Subscriber:
        subscriber = await Subscriber.open(address, self._patience, on_push=self._on_push, on_ended=self._on_ended)
        try:
            await self._route.verify(subscriber, address)
        except BaseException:
            subscriber.close()
            raise
        return subscriber

    def _on_ended(self, channel: bytes) -> None:
        shard = self._shards.get(channel)
        if shard is not None:
            self._listens[shard] = None
            self._attempts[shard].failed()
            self._stirred[shard].set()

    def _changed(self, shards: Sequence[int]) -> None:
        for shard in shards:
            self._stirred[shard].set()

    def _on_push(self, channel: bytes, message: bytes) -> None:
        shard = self._shards.get(channel)
        if shard is not None:
            self._listener(shard, message)

    def _ping_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PING_EVERY_S, self._ping)

    def _ping(self) -> None:
        """An unanswered ping makes its connection close itself after its time-out, and the supervisor open another."""
        self._timer = None
        alive = {subscriber for subscriber in self._links.by_shard if subscriber is not None and not subscriber.closed}
        for subscriber in alive:
            subscriber.ping().add_done_callback(ignore_error)
        if alive:
            self._ping_later()

    async def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._links.close()

    async def publish(self, shard: int, message: bytes) -> None:
        """Nothing to do: the script that gave the event its seq published it in the same step."""

    @asynccontextmanager
    async def answers(self, shard: int, question: str, *, sharded: bool) -> AsyncIterator[None]:
        """See `Bus.answers`: over a connection of its own, so that events wait for none of them. They have a channel of
        their own: of many nodes none would hear the others' answers to somebody else."""

        def heard_one(_channel: bytes, message: bytes) -> None:
            if message.startswith((ANSWER, HOT_NAMES)):
                self._listener(shard, message)

        try:
            address = self._route.known[shard]
            if address is None:
                raise BusUnavailable(f"no server has the slot of shard {shard}")
            subscriber = await Subscriber.open(address, self._patience, on_push=heard_one)
        except L2Unavailable as error:
            raise BusUnavailable(str(error)) from error
        try:
            await self._route.verify(subscriber, address)
            await subscriber.subscribe(channel_of_answers(self._channels[shard], question), sharded=sharded)
            yield
        except L2Unavailable as error:
            raise BusUnavailable(str(error)) from error
        finally:
            subscriber.close()
