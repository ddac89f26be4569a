"""The primaries of a Cluster, by its slot map."""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from cachebus.base.clock import Clock
from cachebus.base.strangers import Strangers
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.asked_route import ASK_S, AskedRoute, HostPort, port_of
from cachebus.resp.link import Link
from cachebus.resp.replies import Misshapen
from cachebus.resp.tasks import ended

SLOTS: Final = 16_384
NEXT_NODE_S: Final = 0.1
"""So long after one node of a Cluster was asked for the slot map the next one is, too."""
ASKED_AT_ONCE: Final = 2
AGREE_S: Final = 0.5
"""So long a node's whole slot map waits for a second node that says the same."""

Range = tuple[int, int, str, int]
"""The first slot and the last, and host ("": the one that was asked) and port of their primary; port 0
where its place is not known."""


class ClusterMap(AskedRoute):
    """A Redis Cluster: each shard lies where its slot does. `seeds`: nodes of it, of which one must answer."""

    clustered = True

    def __init__(
        self, seeds: Sequence[Address], tags: Sequence[str], *, connect_timeout_s: float, clock: Clock
    ) -> None:
        super().__init__(len(tags), connect_timeout_s, clock)
        self._seeds = list(seeds)
        self._slots = [slot_of(tag) for tag in tags]
        self._turn = 0
        self._ids: frozenset[str] = frozenset()
        """The ids of our Cluster's nodes, as they said them last: addresses change, and others come to stand there."""
        self._strangers = Strangers(clock)

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
        ids = set[str]()
        troubles: dict[str, None] = {}
        until_s = float("inf")
        try:
            while asking and not _agreed(said) and self._clock() < until_s:
                left_s = max(0.0, min(until_s - self._clock(), NEXT_NODE_S if waiting else ASK_S))
                done, asking = await asyncio.wait(asking, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                self._hear(done, said, ids, troubles)
                if said and None not in said[-1]:
                    until_s = min(until_s, self._clock() + AGREE_S)
                if waiting and not (done and asking):
                    asking.add(asyncio.create_task(self._map_of(waiting.pop(0))))
        finally:
            await ended(*asking)
        if not said:
            raise L2Unavailable(f"no node of the Cluster says where its slots are: {'; '.join(troubles)}")
        self._ids = frozenset(ids) or self._ids
        return self._addresses(_most(said)), False

    async def admit(self, link: Link, address: Address) -> None:
        """See `Route.admit`. One that is in no Cluster, or in another one, answers all that it is asked: nothing else
        would ever tell that its shards are served elsewhere."""
        try:
            ids = await link.call("CLUSTER", "SLOTS", reads=_ids)
        except L2Unavailable as error:
            raise L2Unavailable(f"{address} does not say that it is a node of the Cluster: {error}") from None
        if self._ids and self._ids.isdisjoint(ids):
            raise L2Unavailable(f"{address} is {'a node of another Cluster' if ids else 'a node that knows no other'}")

    def _hear(
        self,
        answers: set[asyncio.Task[tuple[list[HostPort | None], frozenset[str]]]],
        said: list[list[HostPort | None]],
        ids: set[str],
        troubles: dict[str, None],
    ) -> None:
        """Take in what nodes have said. Those of another Cluster are passed over, however many they are."""
        for answer in answers:
            try:
                places, theirs = answer.result()
            except L2Unavailable as error:
                troubles[str(error)] = None
                continue
            if not self._ids or not self._ids.isdisjoint(theirs):
                self._strangers.ours_answered()
            elif theirs and not self._strangers.are_believed():
                troubles["a node of another Cluster answers"] = None
                continue
            said.append(places)
            ids |= theirs

    def _addresses(self, places: list[HostPort | None]) -> list[Address | None]:
        at = {place: replace(self._seeds[0], host=place[0], port=place[1]) for place in set(places) if place}
        return [None if place is None else at[place] for place in places]

    async def _map_of(self, node: Address) -> tuple[list[HostPort | None], frozenset[str]]:
        """By shard what a node says, and the ids of all nodes that it names."""
        ranges, ids = await self._asked(node, ("CLUSTER", "SLOTS"), _map)
        firsts = [first for first, *_ in ranges]
        places: list[HostPort | None] = []
        for slot in self._slots:
            at = bisect_right(firsts, slot) - 1
            _, last, host, port = ranges[at] if at >= 0 else (0, -1, "", 0)
            places.append((host or node.host, port) if port and slot <= last else None)
        return places, ids

    def beside(self, shard: int, host: str, port: int) -> Address:
        """See `Route.beside`."""
        place = self.known[shard] or self._seeds[0]
        return replace(place, host=host or place.host, port=port)

    def __str__(self) -> str:
        return f"the Cluster of {', '.join(map(str, self._seeds))}"


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


def _ranges(reply: Any) -> list[Range]:
    """What CLUSTER SLOTS says."""
    found = []
    for first, last, primary, *_ in reply:
        if not isinstance(first, int) or not isinstance(last, int):
            raise Misshapen("slots are numbers")
        # A primary whose place the node does not know takes nothing from what it says of the others.
        found.append((first, last, _host_of(primary), primary[1] and port_of(primary[1])))
    return found


def _host_of(node: Any) -> str:
    """The host of a node; "" for that of the node that was asked. Where names are preferred, and it has none, its
    address stands beside it."""
    host = (node[0] or b"").decode()
    if host != "?":
        return host
    told = dict(zip(node[3][::2], node[3][1::2], strict=True)) if len(node) > 3 else {}
    return (told.get(b"ip") or b"").decode()


def _ids(reply: Any) -> frozenset[str]:
    """The ids of all nodes that CLUSTER SLOTS names, replicas too. What only looks like a Cluster may tell none."""
    return frozenset(node[2].decode() for _, _, *nodes in reply for node in nodes if len(node) > 2)


def _map(reply: Any) -> tuple[list[Range], frozenset[str]]:
    return sorted(_ranges(reply)), _ids(reply)


def slot_of(name: str) -> int:
    """The Cluster slot of a key or channel: that of its hash tag, the part in the first braces, if it has one."""
    _, opened, rest = name.partition("{")
    tag, closed, _ = rest.partition("}")
    return crc_hqx((tag if opened and closed and tag else name).encode(), 0) % SLOTS
