"""A way to a server that carries so many bytes a second and no more, and stops when told to."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from tests.support.way import Way

_PIECE_BYTES = 16_384
_SYSTEM_BYTES = 65_536
"""What the system may keep for this end: else it would take megabytes at once, and the link be as fast as any."""


class SlowLink(Way):
    """Rates are in bytes a second; None: as fast as it goes."""

    def __init__(self, to_port: int, *, up: float | None = None, down: float | None = None) -> None:
        super().__init__(to_port)
        self._rates = {"asked": up, "answered": down}
        self._passing = asyncio.Event()
        self._passing.set()
        self.carried = 0
        """Bytes so far, both ways."""

    def _listener(self) -> socket.socket:
        listener = super()._listener()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SYSTEM_BYTES)
        return listener

    def stop(self) -> None:
        """Carry no more byte; the connections stay."""
        self._passing.clear()

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str, kind: list[str]
    ) -> None:
        loop, rate = asyncio.get_running_loop(), self._rates[direction]
        due_s = loop.time()
        with suppress(OSError):
            while data := await source.read(_PIECE_BYTES):
                await self._passing.wait()
                if rate is not None:  # against a schedule: a pause a piece would be as long as the timer's grain
                    due_s = max(due_s, loop.time() - 0.05) + len(data) / rate
                    await asyncio.sleep(max(0.0, due_s - loop.time()))
                sink.write(data)
                self.carried += len(data)
                await sink.drain()
