"""The pub/sub side: messages are handed on as they are parsed, in order, without a task or a queue in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from cachebus.base.clock import Clock
from cachebus.base.patience import Patience
from cachebus.errors import CacheBusError
from cachebus.resp.address import Address
from cachebus.resp.handshake import join
from cachebus.resp.link import Link, OnLost, fail, waiters
from cachebus.resp.replies import NONSENSE, NOTHING, Misshapen, pack, read_by

OnPush = Callable[[bytes, bytes], None]
OnEnded = Callable[[bytes], None]
_MESSAGES: Final = (b"message", b"smessage")
_ENDED: Final = b"sunsubscribe"
_CONFIRMATIONS: Final = (b"subscribe", b"ssubscribe")


class Subscriber(Link):
    """One connection that listens. Use `Subscriber.open`, then `subscribe`."""

    def __init__(
        self, address: Address, *, timeout_s: float, clock: Clock, on_push: OnPush, on_ended: OnEnded | None = None
    ) -> None:
        super().__init__(address, timeout_s=timeout_s, clock=clock)
        self.takes_auth = False
        self._on_push = on_push
        self._on_ended = on_ended

    @classmethod
    async def open(
        cls,
        address: Address,
        patience: Patience,
        *,
        on_push: OnPush,
        on_ended: OnEnded | None = None,
        on_lost: OnLost | None = None,
    ) -> Subscriber:
        """As `Connection.open`. `on_push(channel, payload)` is called for every message and must not block;
        `on_ended(channel)` when a server of a Cluster ends a subscription, as it does when it gives the slot away.

        Should it raise, messages would be missing: the connection is lost then, and the error goes to the loop's
        exception handler.
        """
        timeout_s, connect_timeout_s, clock = patience
        subscriber = cls(address, timeout_s=timeout_s, clock=clock, on_push=on_push, on_ended=on_ended)
        await join(subscriber, address, connect_timeout_s, on_lost)
        return subscriber

    def subscribe(self, *channels: bytes | str, sharded: bool = False) -> asyncio.Future[None]:
        """Listen to these channels; done when the server has confirmed every one. `sharded` is for Redis Cluster."""
        future = self._new_future()
        if not channels:
            future.set_result(None)
        elif self._schedule_flush(future):
            self._out.append(pack(("SSUBSCRIBE" if sharded else "SUBSCRIBE", *channels)))
            # One future for each confirmation to come; the last of them settles it.
            self._asked.append([future] * len(channels))
            if not self._flushing:
                self._flush()
        return future

    def ping(self) -> asyncio.Future[Any]:
        """Ask for a sign of life; the watchdog closes the connection if none comes."""
        return self.call("PING")

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on all messages that have arrived; what is none answers the oldest question."""
        self.last_reply_s = self._clock()
        on_push = self._on_push
        self._feed(self._buffer, 0, nbytes)
        try:
            reply = self._parsed()
            while reply is not NOTHING:
                if isinstance(reply, list) and len(reply) == 3 and reply[0] in _MESSAGES:
                    on_push(reply[1], reply[2])
                    if self.closed:
                        return
                elif isinstance(reply, list) and len(reply) == 3 and reply[0] == _ENDED and self._on_ended is not None:
                    self._on_ended(reply[1])
                elif len(self._asked) == len(self._out):  # the rest was not sent yet
                    self._unasked(reply)
                    return
                elif not self._answer(reply):
                    self._nonsense()
                    return
                reply = self._parsed()
        except Misshapen:
            self._nonsense()

    def _parsed(self) -> Any:
        """The next reply; `Misshapen` where bytes are none. (What `on_push` raises is another matter.)"""
        try:
            return self._next_reply()
        except NONSENSE as error:
            raise Misshapen(str(error)) from error

    def _answer(self, reply: Any) -> bool:
        """Settle the oldest question; False if it is not of this kind."""
        waiting = self._asked[0]
        confirms = isinstance(reply, list) and len(reply) == 3 and reply[0] in _CONFIRMATIONS
        if isinstance(reply, CacheBusError):
            fail(waiters(waiting)[0], reply)
        elif confirms != isinstance(waiting, list):
            return False
        elif isinstance(waiting, list):
            future = waiting.pop()
            if waiting:
                return True
            if not future.done():
                future.set_result(None)
        else:
            future, reads = waiting if isinstance(waiting, tuple) else (waiting, None)
            found = reply if reads is None else read_by(reads, reply)
            if not future.done():
                future.set_result(found)
        self._asked.popleft()
        self._answered += 1
        return True
