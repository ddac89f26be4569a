"""A way to a server: a port of its own, from which each connection is carried on to the server's."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from typing import Self

_PIECE_BYTES = 16_384
"""More is not kept for an end that is slow to take it."""


class Way(ABC):
    """An async context manager; `port` is where it listens."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        listener = self._listener()
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=_PIECE_BYTES)
        self.port = listener.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _listener(self) -> socket.socket:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        return listener

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
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
            for end in (writer, there_writer):
                end.transport.abort()

    @abstractmethod
    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str, kind: list[str]
    ) -> None:
        """Carry one direction of a connection, "asked" or "answered"; `kind` belongs to both."""
