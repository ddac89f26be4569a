"""The primary that Sentinels watch over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from cachebus.base.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.asked_route import AskedRoute, HostPort, port_of
from cachebus.resp.endpoints import Endpoints
from cachebus.resp.handshake import must_be_primary
from cachebus.resp.link import Link
from cachebus.resp.tasks import ended


class Sentinels(AskedRoute):
    """A primary that Sentinels watch over."""

    def __init__(self, endpoints: Endpoints, shards: int, *, connect_timeout_s: float, clock: Clock) -> None:
        super().__init__(shards, connect_timeout_s, clock)
        self._sentinels = list(endpoints.addresses)
        self._service = endpoints.service
        self._template = endpoints.template
        self._refuted: Address | None = None
        """A server that they name, and that says that it is no primary."""

    def refute(self, address: Address) -> None:
        """See `Route.refute`."""
        self._refuted = address

    async def verify(self, link: Link, address: Address) -> None:
        """See `Route.verify`. They may not know yet that it was deposed: it must say itself that it is a primary."""
        await must_be_primary(link, address)

    async def _found(self) -> tuple[list[Address | None], bool]:
        """What they say, but for a replica that they hold for the primary, as they may for half a minute after two
        failovers at once: where that is so, the primary that it follows. Whom they name is asked for its role where it
        said before that it is a replica, or where another one does what only a primary does."""
        address, sure = await self._named()
        leaves = address != self.known[0] and any(holds(0) for holds in self._holding)
        if not leaves and address != self._refuted:
            return self._everywhere(address), sure
        try:
            followed = await self._asked(address, ("ROLE",), _followed)
            if followed is None:  # it is the primary by now
                self._refuted = None
                return self._everywhere(address), sure
            self._refuted = address
            if await self._asked(self._address(followed), ("ROLE",), _followed) is None:
                return self._everywhere(self._address(followed)), False
        except L2Unavailable:
            pass
        return self._everywhere(address), sure and address != self._refuted

    async def _named(self) -> tuple[Address, bool]:
        """What most Sentinels say: one that is cut off from the others may still name a primary that was deposed. Once
        more than half say the same, nobody waits for the others, whose host may be gone. Where there is no such
        majority, the latest failover counts that any of them knows of."""
        named: dict[HostPort, list[Address]] = {}
        troubles: dict[str, None] = {}
        asking = [asyncio.create_task(self._say(sentinel)) for sentinel in self._sentinels]
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    host_port, sentinel = await answer
                except L2Unavailable as error:
                    troubles[str(error)] = None
                    continue
                named.setdefault(host_port, []).append(sentinel)
                if 2 * len(named[host_port]) > len(asking):
                    return self._address(host_port), True
        finally:
            await ended(*asking)
        if not named:
            raise L2Unavailable(f"no Sentinel says where {self._service!r} is: {'; '.join(troubles)}")
        if len(named) == 1:
            return self._address(next(iter(named))), False
        answers = [(host_port, sentinel) for host_port, sentinels in named.items() for sentinel in sentinels]
        failovers = await asyncio.gather(*(self._failovers(sentinel) for _, sentinel in answers))
        latest = dict.fromkeys(named, -1)
        for (host_port, _), count in zip(answers, failovers, strict=True):
            latest[host_port] = max(latest[host_port], count)
        # In a tie of all that it is one for every node, and the same at every refresh: else they were on two primaries.
        return self._address(max(named, key=lambda each: (latest[each], len(named[each]), each))), False

    def _address(self, host_port: HostPort) -> Address:
        host, port = host_port
        return replace(self._template, host=host, port=port)

    def _everywhere(self, address: Address) -> list[Address | None]:
        return [address] * self.shards

    async def _say(self, sentinel: Address) -> tuple[HostPort, Address]:
        host_port: HostPort | None
        try:
            host_port = await self._asked(sentinel, ("SENTINEL", "get-master-addr-by-name", self._service), _named)
        except L2Unavailable as error:
            if str(sentinel) in str(error):
                raise
            raise L2Unavailable(f"{sentinel} refuses: {error}") from error
        if host_port is None:
            raise L2Unavailable(f"{sentinel} does not know {self._service!r}")
        return host_port, sentinel

    async def _failovers(self, sentinel: Address) -> int:
        """The number of the last failover that it knows of: Sentinels count them together. -1 where it does not say."""
        try:
            return int(await self._asked(sentinel, ("SENTINEL", "MASTER", self._service), _config_epoch))
        except L2Unavailable:
            return -1

    def beside(self, shard: int, host: str, port: int) -> Address:
        """See `Route.beside`."""
        return replace(self._template, host=host, port=port)

    def __str__(self) -> str:
        return f"{self._service!r} by the Sentinels {', '.join(map(str, self._sentinels))}"


def _config_epoch(reply: Any) -> int:
    """What a Sentinel says of the number of the last failover."""
    return int(dict(zip(reply[::2], reply[1::2], strict=True))[b"config-epoch"])


def _followed(reply: Any) -> HostPort | None:
    """Whom a server follows, by its role; None where it is a primary."""
    return None if reply[0] == b"master" else (reply[1].decode(), port_of(reply[2]))


def _named(reply: Any) -> HostPort | None:
    """What a Sentinel says of a primary: host and port; None where it knows none."""
    if reply is None:
        return None
    host, port = reply
    return host.decode(), port_of(int(port))
