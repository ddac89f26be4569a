"""The proxies of one node before the servers of a group: one before each.

The servers name each other, in slot maps, in MOVED, and in what Sentinels say. So no address is changed: the node's
event loop connects to the node's own proxy where it is asked for a server.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from cachebus.tools.harness.proxy import ALL_KINDS, BOTH, HOST, Dial, Proxy
from cachebus.tools.harness.stream import Direction, Kind, Spoil


class NodeProxies:
    """A proxy for each server of a group. Its methods do to all of them what the `Proxy`'s method of that name does. An
    async context manager."""

    def __init__(self, dials: Mapping[int, Dial]) -> None:
        """`dials`: how to reach each server, by its port."""
        self._proxies = {port: Proxy(dial) for port, dial in dials.items()}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for proxy in self._proxies.values():
                await stack.enter_async_context(proxy)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def ports(self) -> dict[int, int]:
        """The port of each proxy, by its server's port."""
        return {port: proxy.port for port, proxy in self._proxies.items()}

    def to(self, port: int) -> Proxy:
        """The proxy before the server with this port."""
        return self._proxies[port]

    def hold(self, kinds: Sequence[Kind] = ALL_KINDS, directions: Sequence[Direction] = BOTH) -> None:
        """See `Proxy.hold`."""
        self._each(lambda proxy: proxy.hold(kinds, directions))

    def delay(
        self, seconds: Callable[[], float], kinds: Sequence[Kind] = ALL_KINDS, directions: Sequence[Direction] = BOTH
    ) -> None:
        """See `Proxy.delay`."""
        self._each(lambda proxy: proxy.delay(seconds, kinds, directions))

    def spoil(self, spoil: Spoil) -> None:
        """See `Proxy.spoil`."""
        self._each(lambda proxy: proxy.spoil(spoil))

    def cut(self) -> None:
        """See `Proxy.cut`."""
        self._each(lambda proxy: proxy.cut())

    def reset(self) -> None:
        """See `Proxy.reset`."""
        self._each(lambda proxy: proxy.reset())

    def tear(self) -> None:
        """See `Proxy.tear`."""
        self._each(lambda proxy: proxy.tear())

    def restore(self) -> None:
        """See `Proxy.restore`."""
        self._each(lambda proxy: proxy.restore())

    def _each(self, do: Callable[[Proxy], None]) -> None:
        for proxy in self._proxies.values():
            do(proxy)


NodeProxy = Proxy | NodeProxies
"""What stands between a node and its server, or its servers."""


def redirect(loop: asyncio.AbstractEventLoop, ports: Mapping[int, int]) -> None:
    """Have the loop connect to other ports of this machine than it is asked for, whichever way it is asked."""
    connect = loop.sock_connect

    async def sock_connect(sock: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] == HOST:  # else it is a path, or another host
            address = HOST, ports.get(address[1], address[1])
        await connect(sock, address)

    loop.sock_connect = sock_connect  # type: ignore[method-assign]
