"""A way to a server that carries so many bytes a second and no more, and stops when told to."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

_PIECE_BYTES = 16_384
_SYSTEM_BYTES = 65_536
"""What the system may keep for this end: else it would take megabytes at once, and the link be as fast as any."""


class SlowLink:
    """An async context manager; `port` is where it listens. Rates are in bytes a second; None: as fast as it goes."""

    def __init__(self, to_port: int, *, up: float | None = None, down: float | None = None) -> None:
        self._to_port = to_port
        self._rates = up, down
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self.carried = 0
        """Bytes so far, both ways."""
        self.port = 0

    async def __aenter__(self) -> SlowLink:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SYSTEM_BYTES)
        listener.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=_PIECE_BYTES)
        self.port = listener.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        """Carry no more byte; the connections stay."""
        self._passing.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        ways = [
            asyncio.ensure_future(self._carry(reader, there_writer, self._rates[0])),
            asyncio.ensure_future(self._carry(there_reader, writer, self._rates[1])),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, there_writer):
                end.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, rate: float | None) -> None:
        loop = asyncio.get_running_loop()
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
