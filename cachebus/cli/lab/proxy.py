"""A TCP proxy that breaks on request: between one node and its server, to show what a hanging network does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Self

from cachebus.resp import Address

HOST: Final = "127.0.0.1"
CHUNK_BYTES: Final = 1 << 16
CONNECT_S: Final = 5.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def dialer(address: Address) -> Callable[[], Awaitable[Streams]]:
    """How to reach a server: over TCP, TLS (verified here, for the name in its certificate) or a unix socket."""

    async def dial() -> Streams:
        if address.path is not None:
            return await asyncio.open_unix_connection(address.path)
        name = address.host if address.ssl else None
        return await asyncio.open_connection(address.host, address.port, ssl=address.ssl, server_hostname=name)

    return dial


class Proxy:
    """Passes bytes both ways, until told otherwise; an async context manager. Listens on loopback alone.

    `hold` makes all connections half-open: they stay, new ones are taken, and no byte passes. `cut` breaks them all and
    refuses new ones. `restore` ends either; bytes that were held arrive then.
    """

    def __init__(self, dial: Callable[[], Awaitable[Streams]]) -> None:
        self._dial = dial
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def hold(self) -> None:
        """Let no byte pass any more."""
        self._open.clear()

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        self._refusing = True
        for end in self._ends:
            end.transport.abort()

    def restore(self) -> None:
        """Let everything pass again."""
        self._refusing = False
        self._open.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._ends |= ends
        try:
            await self._open.wait()
            async with asyncio.timeout(CONNECT_S):
                there_reader, there_writer = await self._dial()
            ends.add(there_writer)
            self._ends |= ends
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, there_writer))
                group.create_task(self._pass(there_reader, writer))
        except* OSError:
            pass  # either side went away, which is what its peer is told below
        finally:
            self._ends -= ends
            for end in ends:
                end.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._open.wait()
            sink.write(data)
            await sink.drain()
        # One direction at its end is the connection at its end: nothing here speaks on over a half-closed one.
        raise ConnectionResetError
