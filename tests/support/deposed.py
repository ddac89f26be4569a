"""A primary that was deposed and does not know it, the one in its place, and a publisher who comes from the one to the
other. Neither replicates: what the first one acknowledges is lost with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from cachebus.resp import parse_address
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.servers import any_binary


@dataclass
class Failover:
    """`publisher_url` leads to the deposed primary, until `move`; `url` always to the new one."""

    deposed: EmbeddedServer
    primary: EmbeddedServer
    _proxy: Proxy
    _way: list[EmbeddedServer]

    @property
    def publisher_url(self) -> str:
        """The publisher's way to its primary."""
        return f"redis://{HOST}:{self._proxy.port}/0"

    @property
    def url(self) -> str:
        """Everybody else's."""
        return self.primary.url

    def move(self) -> None:
        """From now on the publisher's way leads to the new primary; its connections break."""
        self._way[0] = self.primary
        self._proxy.cut()
        self._proxy.restore()


@asynccontextmanager
async def failover() -> AsyncIterator[Failover]:
    """Two primaries at once; nobody has asked the new one anything yet, so that its epoch is still to begin."""
    with EmbeddedServer(any_binary()) as deposed, EmbeddedServer(any_binary()) as primary:
        way = [deposed]

        async def dial(*arguments: Any) -> Any:
            return await dialer(parse_address(way[0].url))(*arguments)

        async with Proxy(dial) as proxy:
            yield Failover(deposed, primary, proxy, way)
