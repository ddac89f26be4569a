"""What several servers have in common that are one service on 127.0.0.1, be they watched by Sentinels or a Cluster."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.resp import Connection, parse_address
from cachebus.tools.servers.redis import EmbeddedServer, ServerBinary, best_server, free_port

READY_S: Final = 30.0
POLL_S: Final = 0.02
TIMEOUT_S: Final = 5.0
Front = Callable[[int], Awaitable[int]]
"""Gives for a port another one, which leads there."""
_QUICK: Final = ("repl-diskless-sync-delay 0", "repl-ping-replica-period 1", "repl-timeout 5")


async def ask(server: EmbeddedServer, *command: str | int) -> Any:
    """One command over a connection of its own; `L2Unavailable`."""
    connection = await Connection.open(parse_address(server.url), Patience(TIMEOUT_S, TIMEOUT_S, monotonic))
    try:
        return await connection.call(*command)
    finally:
        connection.close()


async def facts_of(server: EmbeddedServer, *command: str) -> dict[str, str]:
    """A reply of lines `name:value`, such as INFO's."""
    lines = (await ask(server, *command)).decode().splitlines()
    return dict(line.partition(":")[::2] for line in lines if ":" in line)


class ServerGroup(ABC):
    """Servers that are started and stopped together; an async context manager.

    `front`: puts something before each server that holds data, by which its clients and the other servers come.
    """

    def __init__(self, binary: ServerBinary | None, conf: Sequence[str], front: Front | None) -> None:
        self.servers: list[EmbeddedServer] = []
        self._binary = binary or best_server()
        self._conf = [*_QUICK, *conf]
        self._front = front
        self._fronts: dict[int, int] = {}
        self._ports: list[int] = []
        """Of those that hold data; the last one is free for `replace`."""

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    @property
    @abstractmethod
    def url(self) -> str:
        """How a cache reaches them."""

    @abstractmethod
    async def start(self) -> None:
        """Start them all, and wait until they are one service."""

    def stop(self) -> None:
        """End them all."""
        for server in self.servers:
            server.stop()

    def place(self, server: EmbeddedServer) -> int:
        """The port by which the others know a server."""
        return self._fronts.get(server.port, server.port)

    @property
    def places(self) -> dict[int, int]:
        """By that port the own one, of all servers that hold data, and of the next that `replace` starts."""
        return {self._fronts.get(port, port): port for port in self._ports}

    def replace(self, gone: EmbeddedServer) -> EmbeddedServer:
        """Start a server that has nothing and follows nobody, for one that is gone for good, with all it had."""
        gone.stop()
        fresh = self._holding(self._ports.pop())
        self._ports.remove(gone.port)
        self._ports += [fresh.port, gone.port]
        self.servers[self.servers.index(gone)] = fresh
        return fresh.start()

    async def _port(self) -> int:
        """One for a server that holds data."""
        port = free_port(self)
        self._ports.append(port)
        if self._front is not None:
            for own in self._fronted(port):
                self._fronts[own] = await self._front(own)
        return port

    def _fronted(self, port: int) -> Sequence[int]:
        """All ports of a server to which others come."""
        return (port,)

    def _holding(self, port: int, *lines: str) -> EmbeddedServer:
        """A server that is to hold data."""
        announced = self._announced(port) if port in self._fronts else ()
        return EmbeddedServer(self._binary, port=port, conf=[*self._conf, *announced, *lines])

    def _announced(self, port: int) -> Sequence[str]:
        """How it tells others by which port to come."""
        return (f"replica-announce-port {self._fronts[port]}",)

    @property
    def pids(self) -> set[int]:
        """The processes that run."""
        return {server.pid for server in self.servers if server.running}

    async def _until(self, met: Callable[[], Any], what: str) -> None:
        deadline_s = monotonic() + READY_S
        while True:
            try:
                if await met():
                    return
            except L2Unavailable:
                pass
            if monotonic() > deadline_s:
                logs = "\n".join(server.log_tail() for server in self.servers)
                raise ConfigError(f"{what}: not after {READY_S:g} s\n{logs}")
            await asyncio.sleep(POLL_S)
