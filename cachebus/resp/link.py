"""One socket to one server: questions go out once a loop tick, and whoever waits hears when the socket is gone."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Final, Protocol, cast

from cachebus.base.clock import Clock
from cachebus.base.home import in_each_child
from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.replies import NotAsked, Reads, new_reader, pack
from cachebus.resp.unsent import unsent
from cachebus.resp.watchdog import ConnectionProgress, Watchdog

PENDING_MAX: Final = 100_000
"""Questions that may wait for an answer; those beyond it fail at once."""

PACKED_MAX_BYTES: Final = 512 * 1024 * 1024
"""A server that is sent a longer argument closes the connection, and fails everybody's calls."""

KEPT_MAX_BYTES: Final = 64 * 1024 * 1024
"""What may wait to be sent to a server that is slow to take it; beyond it, questions of more than `SMALL_BYTES` fail at
once. (A caller that gives up and tries again would fill the process: what it has asked for is sent all the same.)"""

SMALL_BYTES: Final = 65_536
"""Questions of so few are not refused for others' bytes, a probe or an invalidation, but for too many of their own."""

SMALL_KEPT_MAX_BYTES: Final = 4 * KEPT_MAX_BYTES

ALONE_MIN: Final = 16
"""After so many questions in a row that had a loop tick to themselves, the next one does not wait for company."""

BUFFER_BYTES: Final = 262_144
"""What is read from the socket at once."""

OnLost = Callable[[Exception], None]
Waiting = asyncio.Future[Any] | tuple[asyncio.Future[Any], Reads] | list[asyncio.Future[Any]]
"""Who waits for a reply: one caller, be it as it is or read first; or all who share an MGET."""
_generations = count(1)


class Stops(Protocol):
    """What goes on for as long as a link does."""

    def stop(self) -> None:
        """The link has ended."""


class Link(asyncio.BufferedProtocol):
    """What a `Connection` and a `Subscriber` share: writing, watching and losing a socket. Replies are theirs to read.

    `closed` says that no call can succeed any more, `generation` numbers the connections of this process, and
    `last_reply_s` is the clock's time (seconds) at which the server was last heard. `on_lost` hears once of any loss
    but `close`.
    """

    def __init__(self, address: Address, *, timeout_s: float, clock: Clock) -> None:
        self.closed = False
        self.generation = next(_generations)
        self.last_reply_s = clock()
        self._clock = clock
        self._timeout_s = timeout_s
        self.where = str(address)
        self.takes_auth = True
        """Whether AUTH may be sent at any time: a server takes none from who listens, unless RESP3 is spoken."""
        self.renewal: Stops | None = None
        """Logs it in anew."""
        self.on_lost: OnLost | None = None
        loop = asyncio.get_running_loop()
        self._call_soon = loop.call_soon
        # A partial of the C class: `loop.create_future` would add a Python frame to each call.
        self._new_future: Callable[[], asyncio.Future[Any]] = partial(asyncio.Future, loop=loop)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []  # not sent yet: a command for each of the last in `_asked`
        self._asked: deque[Waiting] = deque()
        self._getters: list[asyncio.Future[Any]] = []
        self._batched = 0  # those who share an answer, beyond the first
        self._answered = 0
        self._written = 0
        self._kept_bytes = 0  # big ones of this tick; all while the server takes none
        self._flushing = False
        self._paused = False
        self._lone_ticks = 0  # loop ticks in a row that had one question each
        reader = new_reader()
        self._feed: Callable[[memoryview, int, int], None] = cast("Any", reader.feed)
        # One for all reads: `Protocol` gets new bytes of 256 KiB for each, and their pages cost more than a round trip.
        # A view, since asyncio's TLS writes to slices of it, and a slice of a bytearray is a copy.
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._next_reply = reader.gets
        self._silent = f"{self.where} did not answer in {timeout_s:g} s"
        self._watchdog = Watchdog(loop, timeout_s, self._progress, self._expired)

    # -- asking -------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """How many answers are waited for."""
        return len(self._asked) + self._batched + len(self._getters)

    @property
    def connected(self) -> bool:
        """Whether there ever was a socket, its TLS agreed on."""
        return self._transport is not None

    @property
    def answered(self) -> int:
        """How many questions were answered."""
        return self._answered

    def call(self, *args: bytes | str | int, reads: Reads | None = None) -> asyncio.Future[Any]:
        """Send a command; its future gets the reply, or the `L2Unavailable` that came instead.

        Replies are what RESP2 has: bytes, int, None and lists of them; or what `reads` makes of one. A reply by which
        `reads` raises is nonsense, which costs the connection at once: whatever comes behind it may answer others.
        Cancelling the future takes nothing back. Raises only TypeError or UnicodeError, for arguments that cannot be
        sent.
        """
        return self.call_packed(pack(args), reads)

    def call_packed(self, packed: bytes, reads: Reads | None = None) -> asyncio.Future[Any]:
        """`call` for a command that `pack` has packed before."""
        future = self._new_future()
        if len(packed) > PACKED_MAX_BYTES:
            fail(future, NotAsked(f"{len(packed)} bytes are too many for {self.where}: at most {PACKED_MAX_BYTES}"))
        elif (self._paused or len(packed) > SMALL_BYTES) and not self._has_room(len(packed)):
            fail(future, NotAsked(f"{self.where} is behind: {self._kept_bytes} bytes wait to be sent"))
        elif (self._flushing and len(self._asked) < PENDING_MAX) or self._schedule_flush(future):
            self._out.append(packed)
            self._asked.append(future if reads is None else (future, reads))
            if not self._flushing:
                self._flush()
        return future

    def close(self) -> None:
        """Drop the socket now; what is pending fails, `on_lost` is not called. May be repeated."""
        self._end(f"the connection to {self.where} was closed")

    def give_up(self, why: str) -> None:
        """Drop the socket now, as lost: whoever needs one makes another."""
        self._lost(why)

    def forsake(self) -> None:
        """In a forked child: the socket is its parent's. Neither a byte out of this process nor one into it.

        A child that ran only one turn more of the loop it was forked in would ask what its parent asks too, and the
        parent would take the first answer twice: the value of one key for another's. The descriptor is what both
        share, so here it becomes nobody's, whatever the loop still holds for it; the parent's is left alone.
        """
        self.closed = True
        self._watchdog.stop()
        self._out.clear()
        self._flushing = False
        transport, self._transport = self._transport, None
        socket = None if transport is None else transport.get_extra_info("socket")
        if socket is not None and (descriptor := socket.fileno()) >= 0:
            nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nowhere, descriptor, inheritable=False)
            os.close(nowhere)

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more may wait, for the server to take some or for the end of the tick."""
        most = KEPT_MAX_BYTES if size > SMALL_BYTES else SMALL_KEPT_MAX_BYTES
        if self._kept_bytes and self._kept_bytes + size > most:
            return False
        self._kept_bytes += size
        return True

    def _schedule_flush(self, future: asyncio.Future[Any]) -> bool:
        """Have a flush at the end of this tick, unless nobody is expected to join: then who asks has to flush, once its
        question is in `_out` and `_asked`. False if the future was failed."""
        if self.closed:
            fail(future, L2Unavailable(f"not connected to {self.where}"))
            return False
        if self.pending >= PENDING_MAX:
            fail(future, NotAsked(f"{self.where} is behind: {PENDING_MAX} calls wait for its answers"))
            return False
        if not self._flushing and (self._lone_ticks < ALONE_MIN or self._asked):
            self._flushing = True
            self._call_soon(self._flush)
        return True

    def _collect(self) -> None:
        """Turn the questions gathered in `_getters` into commands; only a `Connection` gathers any."""

    def _flush(self) -> None:
        self._flushing = False
        if self._getters:
            self._collect()
        out = self._out
        if not out or self._transport is None:
            return
        self._lone_ticks = self._lone_ticks + 1 if len(out) == 1 and not isinstance(self._asked[-1], list) else 0
        if not self._paused:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._kept_bytes = 0
            self._written += len(data)
            self._transport.write(data)
        if self._watchdog.asleep and not self.closed:
            self._watchdog.wake()

    # -- losing -------------------------------------------------------------------------------------------------

    def _lost(self, why: str) -> None:
        if self._end(why) and self.on_lost is not None:
            self.on_lost(L2Unavailable(why))

    def _end(self, why: str) -> bool:
        """Fail all that wait; True the first time."""
        if self.closed:
            return False
        self.closed = True
        self._watchdog.stop()
        if self.renewal is not None:
            self.renewal.stop()
        self._collect()  # so that those still gathering are among the asked
        asked = list(self._asked)
        self._asked.clear()
        self._batched = 0
        self._out.clear()
        self._flushing = False
        # Not close(): that would wait for a stuck server to take what is still buffered.
        if self._transport is not None:
            self._transport.abort()
        for waiting in asked:
            for future in waiters(waiting):
                fail(future, L2Unavailable(why))
        return True

    def _unasked(self, reply: Any) -> None:
        """A reply to nothing that was sent. A server that lets nobody in says why before it is asked anything."""
        if isinstance(reply, CacheBusError):
            self._answered += 1
            self._lost(f"{self.where} refused: {reply}")
        else:
            self._nonsense()

    def _nonsense(self) -> None:
        """The stream of replies can no longer be matched to the questions."""
        self._lost(f"{self.where} sent what does not answer what it was asked, or no RESP2")

    def _progress(self) -> ConnectionProgress:
        written = self._written
        return ConnectionProgress(
            self._answered + len(self._asked),
            self._answered,
            self.last_reply_s,
            written + sum(map(len, self._out)),
            written if self._transport is None else written - unsent(self._transport),
        )

    def _expired(self) -> None:
        self._lost(self._silent)

    # -- called by the transport ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; a link closed while it was being connected drops it."""
        self._transport = cast("asyncio.Transport", transport)
        _open.add(self)
        if self.closed:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport puts what it reads next."""
        return self._buffer

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone, by whoever's doing."""
        self._lost(f"{self.where} closed the connection" if exc is None else f"lost {self.where}: {exc}")

    def pause_writing(self) -> None:
        """The server reads more slowly than we write: gather, and let `PENDING_MAX` and `KEPT_MAX_BYTES` refuse."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        self._paused = False
        self._flush()


_open: Final[weakref.WeakSet[Link]] = weakref.WeakSet()


def _forsake_all() -> None:
    for link in list(_open):
        link.forsake()


in_each_child(_forsake_all)


def waiters(waiting: Waiting) -> list[asyncio.Future[Any]]:
    """Their futures."""
    if isinstance(waiting, list):
        return waiting
    return [waiting[0] if isinstance(waiting, tuple) else waiting]


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Give a future its error, unless its caller went away. Nobody has to look at it: losing a socket is told once."""
    if not future.done():
        future.set_exception(error)
        future.exception()
