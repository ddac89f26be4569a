"""Where the primaries are: one server's address, what Sentinels say, or the slot map of a Cluster."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from binascii import crc_hqx
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from cachebus.backoff import Backoff
from cachebus.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.connection import Connection
from cachebus.resp.replies import Misshapen, Reads
from cachebus.resp.tasks import ended, heard, shared

SLOTS: Final = 16_384
ASK_S: Final = 1.0
"""A Sentinel or Cluster node that does not say where the primaries are in this time is passed over."""
NEXT_NODE_S: Final = 0.1
"""So long after one node of a Cluster was asked for the slot map the next one is, too."""
LOOK_AGAIN_S: Final = 0.8
"""The pause after a look at which somebody answered; after one at which nobody did it grows, up to 2 s."""

OnMoved = Callable[[Sequence[int]], None]
Range = tuple[int, int, str, int]
"""The first slot and the last, and host (nothing, or "?": the one that was asked) and port of their primary."""


class Route(ABC):
    """Knows the primary of every shard: `known`, None where nobody serves it, or has been asked yet."""

    clustered = False
    """Whether keys of different shards may lie on different servers, and commands be sent on to others."""
    checks_role = False
    """Whether a server must say itself that it is a primary: it may have been deposed since."""
    moves = True
    """Whether a shard may come to lie elsewhere."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.known: list[Address | None] = [None] * shards
        self._watching: list[OnMoved] = []

    def watch(self, on_moved: OnMoved) -> None:
        """Have `on_moved` called with the shards whose primary lies elsewhere from now on."""
        self._watching.append(on_moved)

    @abstractmethod
    async def look(self, since_s: float) -> None:
        """Look where the primaries are, unless somebody has begun to since then; `L2Unavailable` where nobody can say.
        What was known stays known until somebody says another thing."""

    def moved(self, shard: int, host: str, port: int) -> Address:
        """A server said where the shard's slot is now."""
        places = list(self.known)
        place = places[shard] = self.beside(shard, host, port)
        self._learn(places)
        return place

    @abstractmethod
    def beside(self, shard: int, host: str, port: int) -> Address:
        """A server that another one has named, which says nothing of the host where that is its own."""

    def _learn(self, places: list[Address | None]) -> None:
        moved = [shard for shard, place in enumerate(places) if place != self.known[shard]]
        self.known = places
        if moved:
            for on_moved in self._watching:
                on_moved(moved)

    @abstractmethod
    async def close(self) -> None:
        """Look no more."""

    @abstractmethod
    def __str__(self) -> str:
        """For logs and errors: no passwords."""


class Fixed(Route):
    """One server, whatever it is."""

    moves = False

    def __init__(self, address: Address, shards: int) -> None:
        super().__init__(shards)
        self._address = address
        self.known = [address] * shards

    async def look(self, since_s: float) -> None:
        """It stays where it is."""

    async def close(self) -> None:
        """See `Route.close`."""

    def beside(self, shard: int, host: str, port: int) -> Address:
        """See `Route.beside`."""
        return replace(self._address, host=host or self._address.host, port=port)

    def __str__(self) -> str:
        return str(self._address)


class _Asking(Route):
    """A route that others must be asked for: by one look at a time, with a pause after each."""

    def __init__(self, shards: int, connect_timeout_s: float, clock: Clock) -> None:
        super().__init__(shards)
        self._timeout_s = min(connect_timeout_s, ASK_S)
        self._clock = clock
        self._looking: asyncio.Task[None] | None = None
        self._looked_s = self._next_s = float("-inf")
        self._pauses = Backoff()

    async def look(self, since_s: float) -> None:
        """See `Route.look`."""
        while self._looked_s < since_s:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(), name="cachebus-route")
                self._looking.add_done_callback(heard)
            await shared(self._looking)

    async def _look(self) -> None:
        await asyncio.sleep(max(0.0, self._next_s - self._clock()))
        began_s = self._clock()
        try:
            places = await self._found()
        except L2Unavailable:
            self._next_s = self._clock() + self._pauses.next_s()
            self._pauses.longer()
            raise
        self._pauses.reset()
        self._next_s = self._clock() + LOOK_AGAIN_S * random.uniform(0.5, 1.0)
        self._looked_s = began_s
        self._learn(places)

    @abstractmethod
    async def _found(self) -> list[Address | None]:
        """The primaries by shard; `L2Unavailable`."""

    async def _asked(self, whom: Address, question: tuple[str, ...], reads: Reads) -> Any:
        """The answer to a question, over a connection of its own; `L2Unavailable`."""
        connection = await Connection.open(
            whom, timeout_s=self._timeout_s, connect_timeout_s=self._timeout_s, clock=self._clock
        )
        try:
            return await connection.call(*question, reads=reads)
        finally:
            connection.close()

    async def close(self) -> None:
        """See `Route.close`."""
        await ended(self._looking)


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

    async def _found(self) -> list[Address | None]:
        """What most Sentinels say: one that is cut off from the others may still name a primary that was deposed. Once
        more than half say the same, nobody waits for the others, whose host may be gone."""
        named: Counter[tuple[str, int]] = Counter()
        troubles: dict[str, None] = {}
        asking = [asyncio.create_task(self._say(sentinel)) for sentinel in self._sentinels]
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    place = await answer
                except L2Unavailable as error:
                    troubles[str(error)] = None
                    continue
                named[place] += 1
                if 2 * named[place] > len(asking):
                    break
        finally:
            await ended(*asking)
        if not named:
            raise L2Unavailable(f"no Sentinel says where {self._service!r} is: {'; '.join(troubles)}")
        host, port = named.most_common(1)[0][0]
        return [replace(self._template, host=host, port=port)] * self.shards

    async def _say(self, sentinel: Address) -> tuple[str, int]:
        place: tuple[str, int] | None
        place = await self._asked(sentinel, ("SENTINEL", "get-master-addr-by-name", self._service), _named)
        if place is None:
            raise L2Unavailable(f"{sentinel} does not know {self._service!r}")
        return place

    def beside(self, shard: int, host: str, port: int) -> Address:
        """See `Route.beside`."""
        return replace(self._template, host=host, port=port)

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

    async def _found(self) -> list[Address | None]:
        """The slot map of the first node that gives a whole one, else of the one that knows most; another node is asked
        first each time, and the next one soon after one that does not answer at once."""
        nodes = list(dict.fromkeys([*filter(None, self.known), *self._seeds]))
        self._turn += 1
        turn = self._turn % len(nodes)
        waiting = [*nodes[turn:], *nodes[:turn]]
        asking: set[asyncio.Task[list[Address | None]]] = set()
        best: list[Address | None] | None = None
        troubles: dict[str, None] = {}
        try:
            while waiting or asking:
                if waiting:
                    asking.add(asyncio.create_task(self._map_of(waiting.pop(0))))
                done, asking = await asyncio.wait(
                    asking, timeout=NEXT_NODE_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for answer in done:
                    try:
                        places = answer.result()
                    except L2Unavailable as error:
                        troubles[str(error)] = None
                        continue
                    if None not in places:
                        return places
                    if best is None or places.count(None) < best.count(None):
                        best = places
        finally:
            await ended(*asking)
        if best is None:
            raise L2Unavailable(f"no node of the Cluster says where its slots are: {'; '.join(troubles)}")
        return best

    async def _map_of(self, node: Address) -> list[Address | None]:
        ranges = await self._asked(node, ("CLUSTER", "SLOTS"), _ranges)
        return [self._place(slot, ranges, node) for slot in self._slots]

    def _place(self, slot: int, ranges: list[Range], node: Address) -> Address | None:
        for first, last, host, port in ranges:
            if first <= slot <= last:
                return replace(self._seeds[0], host=node.host if host in ("", "?") else host, port=port)
        return None

    def beside(self, shard: int, host: str, port: int) -> Address:
        """See `Route.beside`."""
        place = self.known[shard] or self._seeds[0]
        return replace(place, host=host or place.host, port=port)

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


def _port(port: Any) -> int:
    if not isinstance(port, int) or not 0 < port < 65536:
        raise Misshapen("no port")
    return port


def slot_of(name: str) -> int:
    """The Cluster slot of a key or channel: that of its hash tag, the part in the first braces, if it has one."""
    _, opened, rest = name.partition("{")
    tag, closed, _ = rest.partition("}")
    return crc_hqx((tag if opened and closed and tag else name).encode(), 0) % SLOTS
