"""The connections to every primary, by shard: opened where the route leads, and followed where servers send us on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from cachebus.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.connection import Connection
from cachebus.resp.route import Route


class Links:
    """One connection to each primary. `by_shard` stays the same list; `on_lost` hears which shards lost theirs, or were
    given another."""

    def __init__(
        self, route: Route, *, timeout_s: float, connect_timeout_s: float, clock: Clock,
        on_lost: Callable[[Sequence[int]], None],
    ) -> None:  # fmt: skip
        self.route = route
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._on_lost = on_lost
        self.by_shard: list[Connection | None] = [None] * route.shards
        self._open: dict[Address, Connection] = {}
        self._connecting = asyncio.Lock()
        self._trouble = ""
        """Why the last attempt to connect failed: whoever has no connection is told, and mends a URL by it."""

    @property
    def connected(self) -> bool:
        """Whether every shard has a connection."""
        return all(connection is not None and not connection.closed for connection in self.by_shard)

    def of(self, shard: int) -> Connection:
        """The shard's connection; `L2Unavailable`."""
        connection = self.by_shard[shard]
        if connection is None or connection.closed:
            raise L2Unavailable(f"not connected to {self.route}{self._trouble}")
        return connection

    async def connect(self) -> None:
        """Find the primaries and connect to those that lack a connection; `L2Unavailable` if any can't be reached,
        though the others then are."""
        async with self._connecting:
            if self.connected:
                return
            try:
                await self._connect()
            except L2Unavailable as error:
                self._trouble = f" ({error})"
                raise
            self._trouble = ""

    async def follow(self, shard: int, host: str, port: int) -> None:
        """A server said that the shard is elsewhere now."""
        async with self._connecting:
            self._give(await self._to(self.route.moved(shard, host, port)), [shard])
            self._tidy()

    async def aside(self, shard: int, host: str, port: int) -> Connection:
        """A connection to a server that has the shard's keys only in part as yet: for one command."""
        place = self.route.known[shard]
        async with self._connecting:
            return await self._to(replace(place, host=host or place.host, port=port))

    def close(self) -> None:
        """Drop every connection; what is pending fails."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    async def _connect(self) -> None:
        places = await self.route.find()
        trouble: L2Unavailable | None = None
        for address in dict.fromkeys(places):
            try:
                connection = await self._to(address)
            except L2Unavailable as error:
                trouble = trouble or error
            else:
                self._give(connection, [shard for shard, place in enumerate(places) if place == address])
        self._tidy()
        if trouble is not None:
            raise trouble

    async def _to(self, address: Address) -> Connection:
        connection = self._open.get(address)
        if connection is not None and not connection.closed:
            return connection
        connection = await Connection.open(
            address,
            timeout_s=self._timeout_s,
            connect_timeout_s=self._connect_timeout_s,
            clock=self._clock,
            grouped=self.route.clustered,
        )
        connection.on_lost = partial(self._lost, connection)
        try:
            if self.route.checks_role:
                await _must_be_primary(connection, address)
            if connection.closed:
                raise L2Unavailable(f"{address} closed the connection")
        except BaseException:
            connection.close()
            raise
        self._open[address] = connection
        return connection

    def _give(self, connection: Connection, shards: Sequence[int]) -> None:
        changed = [shard for shard in shards if self.by_shard[shard] is not connection]
        for shard in changed:
            self.by_shard[shard] = connection
        if changed:
            self._on_lost(changed)

    def _lost(self, connection: Connection, _why: Exception) -> None:
        self._on_lost([shard for shard, its in enumerate(self.by_shard) if its is connection])

    def _tidy(self) -> None:
        """Close what no shard uses any more."""
        for address, connection in list(self._open.items()):
            if connection not in self.by_shard:
                connection.close()
                del self._open[address]


async def _must_be_primary(connection: Connection, address: Address) -> None:
    role = await connection.call("ROLE")
    if not isinstance(role, list) or not role or role[0] != b"master":
        raise L2Unavailable(f"{address} is no primary, or not any more")
