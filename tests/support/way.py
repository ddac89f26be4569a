"""A way to a server: a port of its own, from which each connection is carried on to the server's."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Self

_HOST = "127.0.0.1"
_PIECE_BYTES = 16_384
"""More is not kept for an end that is slow to take it."""
_TURNS = 3
"""Of the loop, in which what was accepted just now comes, and goes."""


class Way:
    """An async context manager; `port` is where it listens. With `tls` it speaks that there, and none to the server."""

    def __init__(self, to_port: int, *, host: str = _HOST, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._to_port = to_port
        self._at = (host, port)
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        listener = self._listener()
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=_PIECE_BYTES, ssl=self._tls)
        self.port = listener.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for _turn in range(_TURNS):
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await asyncio.sleep(0)

    def _listener(self) -> socket.socket:
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(self._at)
        except OSError:
            listener.close()
            raise
        return listener

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(_HOST, self._to_port)
        except OSError:
            return
        kind: list[str] = []
        ways = [
            asyncio.ensure_future(self._carry(reader, there_writer, "asked", kind)),
            asyncio.ensure_future(self._carry(there_reader, writer, "answered", kind)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            there_writer.transport.abort()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str, kind: list[str]
    ) -> None:
        """Carry one direction of a connection, "asked" or "answered"; `kind` belongs to both."""
        with suppress(OSError):
            while data := await source.read(_PIECE_BYTES):
                await self._before(data, direction, kind)
                sink.write(data)
                await sink.drain()

    async def _before(self, data: bytes, direction: str, kind: list[str]) -> None:
        """What a piece waits for, before it is carried on."""
