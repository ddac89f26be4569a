"""Where the primaries are: one server's address, what Sentinels say, or the slot map of a Cluster."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from binascii import crc_hqx
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from cachebus.base.backoff import Backoff
from cachebus.base.clock import Clock
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
LOOK_MAX_S: Final = 4.0
"""What that pause grows to, an eighth of a search that finds nothing new: the well pay little for who stays away."""

ASKED_AT_ONCE: Final = 2
AGREE_S: Final = 0.5
"""So long a node's whole slot map waits for a second node that says the same."""

OnMoved = Callable[[Sequence[int]], None]
Holds = Callable[[int], bool]
Range = tuple[int, int, str, int]
"""The first slot and the last, and host (nothing, or "?": the one that was asked) and port of their primary."""
HostPort = tuple[str, int]
"""Host and port."""


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
        self._holding: list[Holds] = []
        self._leaving: list[Callable[[], None]] = []

    def watch(self, on_moved: OnMoved, holds: Holds | None = None, leave: Callable[[], None] | None = None) -> None:
        """Have `on_moved` called with the shards whose primary lies elsewhere from now on. `holds`: whether a shard's
        primary does there, now, what only a primary does: then it stays known, whatever a third party says. `leave`:
        lets go of the server that there is a connection to, for `left`."""
        self._watching.append(on_moved)
        if leave is not None:
            self._leaving.append(leave)
        if holds is not None:
            self._holding.append(holds)

    def left(self) -> None:
        """The server behind a fixed name is a replica now: the name may lead to another one by now, which only a new
        connection does. Where others say where the primaries are, it is they who are asked."""
        if not self.moves:
            for leave in self._leaving:
                leave()

    @abstractmethod
    async def look(self, since_s: float) -> None:
        """Look where the primaries are, unless somebody has begun to since then; `L2Unavailable` where nobody can say.
        What was known stays known until somebody says another thing."""

    def moved(self, shard: int, host: str, port: int) -> Address:
        """A server said where the shard's slot is now."""
        place = self.beside(shard, host, port)
        if place != self.known[shard]:
            self._move({shard: place})
        return place

    @abstractmethod
    def beside(self, shard: int, host: str, port: int) -> Address:
        """A server that another one has named, which says nothing of the host where that is its own."""

    def _learn(self, places: list[Address | None], *, sure: bool) -> None:
        """Take in what a look has found. Unless it is `sure`, a shard that anybody holds stays where it is: whoever was
        asked may be cut off from its fellows, or be of another Cluster by now."""
        moved = {
            shard: place
            for shard, (known, place) in enumerate(zip(self.known, places, strict=True))
            if place is not known and place != known and (sure or not any(holds(shard) for holds in self._holding))
        }
        if moved:
            self._move(moved)

    def _move(self, places: Mapping[int, Address | None]) -> None:
        for shard, place in places.items():
            self.known[shard] = place
        for on_moved in self._watching:
            on_moved(list(places))

    @abstractmethod
    def stop(self) -> None:
        """End a look that is under way; awaits nothing."""

    async def close(self) -> None:
        """`stop`, and return when nothing is under way."""
        self.stop()

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

    def stop(self) -> None:
        """See `Route.stop`."""

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
        self._looked_s = self._next_s = self._same_since_s = float("-inf")
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
        began_s, before = self._clock(), list(self.known)
        if began_s > self._next_s + LOOK_AGAIN_S:  # nobody has looked for a while
            self._same_since_s = began_s
        try:
            places, sure = await self._found()
        except L2Unavailable:
            self._next_s = self._clock() + self._pauses.next_s()
            self._pauses.longer()
            raise
        self._pauses.reset()
        self._looked_s = began_s
        self._learn(places, sure=sure)
        now_s = self._clock()
        if self.known != before:
            self._same_since_s = now_s
        pause_s = min(LOOK_MAX_S, max(LOOK_AGAIN_S, (now_s - self._same_since_s) / 8))
        self._next_s = now_s + pause_s * random.uniform(0.5, 1.0)

    @abstractmethod
    async def _found(self) -> tuple[list[Address | None], bool]:
        """The primaries by shard, and whether that outweighs what they do themselves; `L2Unavailable`."""

    async def _asked(self, whom: Address, question: tuple[str, ...], reads: Reads) -> Any:
        """The answer to a question, over a connection of its own; `L2Unavailable`."""
        connection = await Connection.open(
            whom, timeout_s=self._timeout_s, connect_timeout_s=self._timeout_s, clock=self._clock
        )
        try:
            return await connection.call(*question, reads=reads)
        finally:
            connection.close()

    def stop(self) -> None:
        """See `Route.stop`."""
        if self._looking is not None:
            self._looking.cancel()

    async def close(self) -> None:
        """See `Route.close`."""
        await ended(self._looking)


class Sentinels(_Asking):
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

    async def _found(self) -> tuple[list[Address | None], bool]:
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
                    return self._everywhere(place), True
        finally:
            await ended(*asking)
        if not named:
            raise L2Unavailable(f"no Sentinel says where {self._service!r} is: {'; '.join(troubles)}")
        if len(named) == 1:
            return self._everywhere(next(iter(named))), False
        told = [(place, sentinel) for place, sentinels in named.items() for sentinel in sentinels]
        failovers = await asyncio.gather(*(self._failovers(sentinel) for _, sentinel in told))
        latest = dict.fromkeys(named, -1)
        for (place, _), count in zip(told, failovers, strict=True):
            latest[place] = max(latest[place], count)
        return self._everywhere(max(named, key=lambda place: (latest[place], len(named[place])))), False

    def _everywhere(self, place: HostPort) -> list[Address | None]:
        host, port = place
        return [replace(self._template, host=host, port=port)] * self.shards

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

    async def _found(self) -> tuple[list[Address | None], bool]:
        """For each shard what two nodes say; where no two agree on all, what most say. A single one may be cut off from
        the others, or belong to another Cluster by now. Two are asked at once, others each time, and the next one soon
        where one does not answer or they do not agree."""
        nodes = list(dict.fromkeys([*filter(None, self.known), *self._seeds]))
        self._turn += 1
        turn = self._turn % len(nodes)
        waiting = [*nodes[turn:], *nodes[:turn]]
        asking = {asyncio.create_task(self._map_of(node)) for node in waiting[:ASKED_AT_ONCE]}
        del waiting[:ASKED_AT_ONCE]
        said: list[list[HostPort | None]] = []
        troubles: dict[str, None] = {}
        until_s = float("inf")
        try:
            while asking and not _agreed(said) and self._clock() < until_s:
                left_s = max(0.0, min(until_s - self._clock(), NEXT_NODE_S if waiting else ASK_S))
                done, asking = await asyncio.wait(asking, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                _heard_of(done, said, troubles)
                if said and None not in said[-1]:
                    until_s = min(until_s, self._clock() + AGREE_S)
                if waiting and not (done and asking):
                    asking.add(asyncio.create_task(self._map_of(waiting.pop(0))))
        finally:
            await ended(*asking)
        if not said:
            raise L2Unavailable(f"no node of the Cluster says where its slots are: {'; '.join(troubles)}")
        return self._addresses(_most(said)), False

    def _addresses(self, places: list[HostPort | None]) -> list[Address | None]:
        at = {place: replace(self._seeds[0], host=place[0], port=place[1]) for place in set(places) if place}
        return [None if place is None else at[place] for place in places]

    async def _map_of(self, node: Address) -> list[HostPort | None]:
        ranges = sorted(await self._asked(node, ("CLUSTER", "SLOTS"), _ranges))
        firsts = [first for first, *_ in ranges]
        places: list[HostPort | None] = []
        for slot in self._slots:
            at = bisect_right(firsts, slot) - 1
            _, last, host, port = ranges[at] if at >= 0 else (0, -1, "", 0)
            places.append((node.host if host in ("", "?") else host, port) if slot <= last else None)
        return places

    def beside(self, shard: int, host: str, port: int) -> Address:
        """See `Route.beside`."""
        place = self.known[shard] or self._seeds[0]
        return replace(place, host=host or place.host, port=port)

    def __str__(self) -> str:
        return f"the Cluster of {', '.join(map(str, self._seeds))}"


def _heard_of(
    answers: set[asyncio.Task[list[HostPort | None]]], said: list[list[HostPort | None]], troubles: dict[str, None]
) -> None:
    for answer in answers:
        try:
            said.append(answer.result())
        except L2Unavailable as error:
            troubles[str(error)] = None


def _agreed(said: list[list[HostPort | None]]) -> bool:
    """Whether for each shard two nodes say the same."""
    if len(said) < 2:
        return False
    if said[-2] == said[-1] and None not in said[-1]:
        return True
    return all(_twice(places) for places in zip(*said, strict=True))


def _twice(places: tuple[HostPort | None, ...]) -> bool:
    there = [place for place in places if place is not None]
    return len(set(there)) < len(there)


def _most(said: list[list[HostPort | None]]) -> list[HostPort | None]:
    """What most nodes say of each shard, the first of them in a tie; nobody only where no node names any."""
    if len(said) == 1 or all(each == said[0] for each in said):
        return said[0]
    votes = (Counter(filter(None, places)).most_common(1) for places in zip(*said, strict=True))
    return [vote[0][0] if vote else None for vote in votes]


def _config_epoch(reply: Any) -> int:
    """What a Sentinel says of the number of the last failover."""
    return int(dict(zip(reply[::2], reply[1::2], strict=True))[b"config-epoch"])


def _named(reply: Any) -> HostPort | None:
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
