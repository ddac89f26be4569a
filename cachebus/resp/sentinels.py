"""The primary that Sentinels watch over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cachebus.base.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.asked_route import AskedRoute, HostPort, port_of
from cachebus.resp.tasks import ended


class Sentinels(AskedRoute):
    """A primary that Sentinels watch over, under the name `service`. `template`: how to log in there."""

    checks_role = True

    def __init__(
        self,
        sentinels: Sequence[Address],
        service: str,
        template: Address,
        shards: int,
        *,
        connect_timeout_s: float,
        clock: Clock,
    ) -> None:
        super().__init__(shards, connect_timeout_s, clock)
        self._sentinels = list(sentinels)
        self._service = service
        self._template = template
        self._refuted: Address | None = None
        """A server that they name, and that says that it is no primary."""

    def refute(self, place: Address) -> None:
        """See `Route.refute`."""
        self._refuted = place

    async def _found(self) -> tuple[list[Address | None], bool]:
        """What they say, but for a replica that they hold for the primary, as they may for half a minute after two
        failovers at once: where that is so, the primary that it follows. Whom they name is asked for its role where it
        said before that it is a replica, or where another one does what only a primary does."""
        place, sure = await self._named()
        leaves = place != self.known[0] and any(holds(0) for holds in self._holding)
        if not leaves and place != self._refuted:
            return self._everywhere(place), sure
        try:
            head = await self._asked(place, ("ROLE",), _head)
            if head is None:  # it is the primary by now
                self._refuted = None
                return self._everywhere(place), sure
            self._refuted = place
            if await self._asked(self._address(head), ("ROLE",), _head) is None:
                return self._everywhere(self._address(head)), False
        except L2Unavailable:
            pass
        return self._everywhere(place), sure and place != self._refuted

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
                    place, sentinel = await answer
                except L2Unavailable as error:
                    troubles[str(error)] = None
                    continue
                named.setdefault(place, []).append(sentinel)
                if 2 * len(named[place]) > len(asking):
                    return self._address(place), True
        finally:
            await ended(*asking)
        if not named:
            raise L2Unavailable(f"no Sentinel says where {self._service!r} is: {'; '.join(troubles)}")
        if len(named) == 1:
            return self._address(next(iter(named))), False
        told = [(place, sentinel) for place, sentinels in named.items() for sentinel in sentinels]
        failovers = await asyncio.gather(*(self._failovers(sentinel) for _, sentinel in told))
        latest = dict.fromkeys(named, -1)
        for (place, _), count in zip(told, failovers, strict=True):
            latest[place] = max(latest[place], count)
        # In a tie of all that it is one for every node, and the same at every look: else they were on two primaries.
        return self._address(max(named, key=lambda place: (latest[place], len(named[place]), place))), False

    def _address(self, place: HostPort) -> Address:
        host, port = place
        return replace(self._template, host=host, port=port)

    def _everywhere(self, place: Address) -> list[Address | None]:
        return [place] * self.shards

    async def _say(self, sentinel: Address) -> tuple[HostPort, Address]:
        place: HostPort | None
        place = await self._asked(sentinel, ("SENTINEL", "get-master-addr-by-name", self._service), _named)
        if place is None:
            raise L2Unavailable(f"{sentinel} does not know {self._service!r}")
        return place, sentinel

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


def _head(reply: Any) -> HostPort | None:
    """Whom a server follows, by its role; None where it is a primary."""
    return None if reply[0] == b"master" else (reply[1].decode(), port_of(reply[2]))


def _named(reply: Any) -> HostPort | None:
    """What a Sentinel says of a primary: host and port; None where it knows none."""
    if reply is None:
        return None
    host, port = reply
    return host.decode(), port_of(int(port))
