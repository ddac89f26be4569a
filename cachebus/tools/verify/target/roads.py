"""The proxies of one node before the servers of a group: one before each.

The servers name each other by their own ports: in slot maps, in MOVED, and in what Sentinels say. So the node is not
given other addresses. Its event loop connects to the proxy when it is asked to connect to the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from cachebus.tools.harness.proxy import ALL_KINDS, BOTH, HOST, Dial, Proxy
from cachebus.tools.harness.stream import Direction, Kind, Spoil


class Roads:
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


Road = Proxy | Roads
"""What stands between a node and its server, or its servers."""


def turn(loop: asyncio.AbstractEventLoop, ports: Mapping[int, int]) -> None:
    """Have the event loop connect to the proxies' ports in place of the servers'."""
    dial = loop.create_connection

    async def create_connection(factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:
        return await dial(factory, host, ports.get(port, port) if host == HOST else port, **more)

    loop.create_connection = create_connection  # type: ignore[assignment,method-assign]
