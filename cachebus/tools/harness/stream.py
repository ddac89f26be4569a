"""One direction of one proxied connection: bytes that pass, wait, come late, or are lost by the message."""

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
"""What arrives in place of a whole reply, or of some bytes, in this order."""

HELD_BYTES_MAX: Final = 4 << 20
"""Beyond it the sender is made to wait, as by a full window."""


@dataclass(slots=True)
class Way:
    """How bytes fare in one direction of all connections of one kind."""

    held: bool = False
    delay: Callable[[], float] | None = None
    """Seconds by which the next bytes come late; never out of order."""
    spoil: Spoil | None = None
    """Of a subscription's replies, each whole; of other bytes as they come."""
    tear: Callable[[], None] | None = None
    """Called once half of the next bytes have passed; the rest is lost."""


class Stream:
    """Takes bytes from one end and gives them to the other, as the way says."""

    def __init__(self, way: Way, *, framed: bool = False) -> None:
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
        """Whether all that was sent has arrived, and what is sent next would."""
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
        due_s = 0.0
        if self.way.delay is not None:
            due_s = self._last_due_s = max(self._last_due_s, self._loop.time() + self.way.delay())
        if not self._waiting and not due_s and not self.way.held and self.sink is not None:
            self._give(data)
            return
        self._waiting.append((due_s, data))
        self._bytes += len(data)
        if self._bytes > HELD_BYTES_MAX and self.source is not None:
            self.source.pause_reading()
        self.flush()

    def flush(self) -> None:
        """Give on what may pass now; to be called whenever the way has changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self._loop.time()
        while self._waiting and not self.way.held and self.sink is not None:
            due_s, data = self._waiting[0]
            if self.way.delay is not None and due_s > now_s:
                self._timer = self._loop.call_at(due_s, self.flush)
                return
            self._waiting.popleft()
            self._bytes -= len(data)
            self._give(data)
        if self.source is not None and self._bytes <= HELD_BYTES_MAX and not self.source.is_closing():
            self.source.resume_reading()

    def drop(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self._bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give(self, data: bytes) -> None:
        assert self.sink is not None
        if self.sink.is_closing():  # lost just now: asyncio would complain of each piece
            return
        tear = self.way.tear
        if tear is None:
            self.sink.write(data)
            return
        self.way.tear = None
        self.sink.write(data[: len(data) // 2])
        self._loop.call_soon(tear)  # so that the half is on its way first
