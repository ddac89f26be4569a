"""Where the primaries are: one server's address, what Sentinels say, or the slot map of a Cluster."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from binascii import crc_hqx
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from cachebus.clock import Clock
from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.connection import Connection
from cachebus.resp.replies import Misshapen, Reads

SLOTS: Final = 16_384
ASK_S: Final = 1.0
"""A Sentinel or Cluster node that does not say where the primaries are in this time is passed over."""


Range = tuple[int, int, str, int]
"""The first slot and the last, and host (nothing, or "?": the one that was asked) and port of their primary."""


class Route(ABC):
    """Finds the primary of every shard. `known` is what was found last, by shard; empty before the first time."""

    clustered = False
    """Whether keys of different shards may lie on different servers, and commands be sent on to others."""
    sharded = False
    """Whether events go by sharded pub/sub: known once the primaries have been found."""
    checks_role = False
    """Whether a server must say itself that it is a primary: it may have been deposed since."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.known: list[Address] = []

    @abstractmethod
    async def find(self) -> list[Address]:
        """Look where the primaries are now; `L2Unavailable` where nobody can say."""

    def moved(self, shard: int, host: str, port: int) -> Address:
        """A server said where the shard's slot is now."""
        self.known[shard] = replace(self.known[shard], host=host or self.known[shard].host, port=port)
        return self.known[shard]

    @abstractmethod
    def __str__(self) -> str:
        """For logs and errors: no passwords."""


class Fixed(Route):
    """One server, whatever it is."""

    def __init__(self, address: Address, shards: int) -> None:
        super().__init__(shards)
        self._address = address
        self.known = [address] * shards

    async def find(self) -> list[Address]:
        """It stays where it is."""
        return self.known

    def __str__(self) -> str:
        return str(self._address)


class _Asking(Route):
    """A route that others must be asked for."""

    def __init__(self, shards: int, connect_timeout_s: float, clock: Clock) -> None:
        super().__init__(shards)
        self._timeout_s = min(connect_timeout_s, ASK_S)
        self._clock = clock

    async def _asked(self, whom: Address, *questions: tuple[tuple[str, ...], Reads]) -> list[Any]:
        """The answers to some questions, over a connection of its own; `L2Unavailable`."""
        connection = await Connection.open(
            whom, timeout_s=self._timeout_s, connect_timeout_s=self._timeout_s, clock=self._clock
        )
        try:
            return [await connection.call(*question, reads=reads) for question, reads in questions]
        finally:
            connection.close()


class Sentinels(_Asking):
    """A primary that Sentinels watch over, under the name `service`. `template`: how to log in there."""

    checks_role = True

    def __init__(
        self, sentinels: Sequence[Address], service: str, template: Address, shards: int,
        *, connect_timeout_s: float, clock: Clock,
    ) -> None:  # fmt: skip
        super().__init__(shards, connect_timeout_s, clock)
        self._sentinels = list(sentinels)
        self._service = service
        self._template = template

    async def find(self) -> list[Address]:
        """What most Sentinels say: one that is cut off from the others may still name a primary that was deposed."""
        answers = await asyncio.gather(*map(self._say, self._sentinels), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, CacheBusError):
                raise answer
        named = Counter(answer for answer in answers if isinstance(answer, tuple))
        if not named:
            troubles = "; ".join(dict.fromkeys(str(answer) for answer in answers))
            raise L2Unavailable(f"no Sentinel says where {self._service!r} is: {troubles}")
        host, port = named.most_common(1)[0][0]
        self.known = [replace(self._template, host=host, port=port)] * self.shards
        return self.known

    async def _say(self, sentinel: Address) -> tuple[str, int]:
        question = "SENTINEL", "get-master-addr-by-name", self._service
        place: tuple[str, int] | None
        (place,) = await self._asked(sentinel, (question, _named))
        if place is None:
            raise L2Unavailable(f"{sentinel} does not know {self._service!r}")
        return place

    def __str__(self) -> str:
        return f"{self._service!r} by the Sentinels {', '.join(map(str, self._sentinels))}"


class ClusterMap(_Asking):
    """A Redis Cluster: each shard lies where its slot does. `seeds`: nodes of it, of which one must answer."""

    clustered = True

    def __init__(
        self, seeds: Sequence[Address], tags: Sequence[str], *, connect_timeout_s: float, clock: Clock
    ) -> None:
        super().__init__(len(tags), connect_timeout_s, clock)
        self._seeds = list(seeds)
        self._slots = [slot_of(tag) for tag in tags]
        self._turn = 0
        self._asked_sharded = False

    async def find(self) -> list[Address]:
        """The slot map of the first node that gives a whole one; another node is asked first each time."""
        nodes = list(dict.fromkeys([*self.known, *self._seeds]))
        self._turn += 1
        turn = self._turn % len(nodes)
        troubles = []
        for node in (*nodes[turn:], *nodes[:turn]):
            try:
                self.known = await self._map_of(node)
            except L2Unavailable as error:
                troubles.append(str(error))
            else:
                return self.known
        raise L2Unavailable(f"no node of the Cluster says where its slots are: {'; '.join(dict.fromkeys(troubles))}")

    async def _map_of(self, node: Address) -> list[Address]:
        questions: list[tuple[tuple[str, ...], Reads]] = [(("CLUSTER", "SLOTS"), _ranges)]
        if not self._asked_sharded:
            questions.append((("COMMAND", "INFO", "SPUBLISH"), _is_known))
        ranges, *known = await self._asked(node, *questions)
        places = [self._place(slot, ranges, node) for slot in self._slots]
        if known:
            self.sharded, self._asked_sharded = known[0], True
        return places

    def _place(self, slot: int, ranges: list[Range], node: Address) -> Address:
        for first, last, host, port in ranges:
            if first <= slot <= last:
                return replace(self._seeds[0], host=node.host if host in ("", "?") else host, port=port)
        raise L2Unavailable(f"{node} knows no server for slot {slot}")

    def __str__(self) -> str:
        return f"the Cluster of {', '.join(map(str, self._seeds))}"


def _named(reply: Any) -> tuple[str, int] | None:
    """What a Sentinel says of a primary: host and port; None where it knows none."""
    if reply is None:
        return None
    host, port = reply
    return host.decode(), _port(int(port))


def _ranges(reply: Any) -> list[Range]:
    """What CLUSTER SLOTS says."""
    found = []
    for first, last, primary, *_ in reply:
        if not isinstance(first, int) or not isinstance(last, int):
            raise Misshapen("slots are numbers")
        found.append((first, last, (primary[0] or b"").decode(), _port(primary[1])))
    return found


def _is_known(reply: Any) -> bool:
    """Whether COMMAND INFO says anything of the one command asked for."""
    (command,) = reply
    return bool(command)


def _port(port: Any) -> int:
    if not isinstance(port, int) or not 0 < port < 65536:
        raise Misshapen("no port")
    return port


def slot_of(name: str) -> int:
    """The Cluster slot of a key or channel: that of its hash tag, the part in the first braces, if it has one."""
    _, opened, rest = name.partition("{")
    tag, closed, _ = rest.partition("}")
    return crc_hqx((tag if opened and closed and tag else name).encode(), 0) % SLOTS
