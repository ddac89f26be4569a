"""A server that refuses what it is asked."""

from __future__ import annotations

import asyncio

from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import until

REFUSALS = {
    "OOM": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "READONLY": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "NOREPLICAS": (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
    "BUSY": (("busy",), ("SCRIPT", "KILL")),
}


class Refusing:
    """Has a server say no, in one of the ways, and then yes again."""

    def __init__(self, server: EmbeddedServer, how: str) -> None:
        self._server, self._how = server, how
        self._busy: asyncio.Task[str] | None = None

    async def begin(self) -> None:
        """From here on."""
        if self._how == "BUSY":
            self._server.command("CONFIG", "SET", "lua-time-limit", "1")
            script = "while true do end"
            self._busy = asyncio.create_task(asyncio.to_thread(self._command_patiently, "EVAL", script, "0"))
            await until(lambda: self._said("PING").startswith("-BUSY"))
        else:
            assert self._said(*REFUSALS[self._how][0]).startswith("+OK")

    async def end(self) -> None:
        """Until here."""
        assert self._said(*REFUSALS[self._how][1]).startswith("+OK")
        if self._busy is not None:
            await self._busy

    def _said(self, *command: str) -> str:
        return self._server.command(*command)

    def _command_patiently(self, *command: str) -> str:
        try:
            return self._server.command(*command)
        except OSError:
            return "it hung up on us"  # after two seconds; the script runs on
