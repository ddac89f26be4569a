"""One direction of one proxied connection: its bytes pass, are held, are delayed, or are replaced."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from cachebus.tools.harness.frames import Frames

Kind = Literal["data", "events"]
"""What a connection is for: commands and their replies, or a subscription."""
Direction = Literal["up", "down"]
"""From the node to the server, or back."""
Spoil = Callable[[bytes], list[bytes]]
"""Returns what arrives in place of a complete reply, or of some bytes, in this order."""

HELD_BYTES_MAX: Final = 4 << 20
"""If more bytes are held, the sender must wait, as if the TCP window was full."""
SLOW_BYTES_MAX: Final = 32 << 10
"""The same of a slow way: else what was given up would keep it busy for minutes."""
PIECE_BYTES: Final = 1 << 10
"""So much passes at once there."""


@dataclass(slots=True)
class OneWay:
    """How bytes pass in one direction of all connections of one kind."""

    held: bool = False
    delay: Callable[[], float] | None = None
    """Gives the seconds by which the next bytes are delayed. They stay in order."""
    rate: float | None = None
    """So many bytes a second pass, of all connections together."""
    free_s: float = 0.0
    """When those that were given to it are through."""
    spoil: Spoil | None = None
    """Replaces the replies of a subscription one by one, and other bytes as they come."""
    tear: Callable[[], None] | None = None
    """Called once half of the next bytes have passed. The rest is lost."""


class Stream:
    """Passes bytes from one end to the other, as the way says."""

    def __init__(self, way: OneWay, *, framed: bool = False) -> None:
        self.way = way
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self._frames = Frames() if framed else None
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._last_due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def passed(self) -> bool:
        """Whether all bytes have arrived, and the next would arrive at once."""
        return not self._waiting and not self.way.held

    def take(self, data: bytes) -> None:
        """Bytes from the source."""
        if self._frames is not None:
            spoil = self.way.spoil
            frames = self._frames.feed(data)
            data = b"".join(frames if spoil is None else [piece for frame in frames for piece in spoil(frame)])
            if not data:
                return
        elif self.way.spoil is not None and not (data := b"".join(self.way.spoil(data))):
            return
        now_s, due_s = self._loop.time(), 0.0
        if self.way.delay is not None:
            due_s = max(self._last_due_s, now_s + self.way.delay())
        if not self._waiting and not due_s and self.way.rate is None and not self.way.held and self.sink is not None:
            self._give(data)
            return
        for begin in range(0, len(data), PIECE_BYTES if self.way.rate else len(data)):
            piece = data[begin : begin + PIECE_BYTES] if self.way.rate else data
            if self.way.rate is not None:
                self.way.free_s = max(now_s, self.way.free_s) + len(piece) / self.way.rate
                due_s = max(due_s, self.way.free_s)
            self._waiting.append((due_s, piece))
        self._last_due_s = due_s
        self._bytes += len(data)
        if self._bytes > self._most_bytes and self.source is not None:
            self.source.pause_reading()
        self.flush()

    @property
    def _most_bytes(self) -> int:
        return HELD_BYTES_MAX if self.way.rate is None else SLOW_BYTES_MAX

    def flush(self) -> None:
        """Pass what may pass now. To be called whenever the way has changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self._loop.time()
        while self._waiting and not self.way.held and self.sink is not None:
            due_s, data = self._waiting[0]
            if (self.way.delay is not None or self.way.rate is not None) and due_s > now_s:
                self._timer = self._loop.call_at(due_s, self.flush)
                return
            self._waiting.popleft()
            self._bytes -= len(data)
            self._give(data)
        if self.source is not None and self._bytes <= self._most_bytes and not self.source.is_closing():
            self.source.resume_reading()

    def drop(self) -> None:
        """Drop the bytes that are held."""
        self._waiting.clear()
        self._bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give(self, data: bytes) -> None:
        assert self.sink is not None
        if self.sink.is_closing():  # the connection is lost: asyncio would log each write
            return
        tear = self.way.tear
        if tear is None:
            self.sink.write(data)
            return
        self.way.tear = None
        self.sink.write(data[: len(data) // 2])
        self._loop.call_soon(tear)  # after the half was sent
