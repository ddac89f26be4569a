"""The primaries of a Cluster, by its slot map."""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from cachebus.base.clock import Clock
from cachebus.base.log import logger
from cachebus.base.strangers import Strangers
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.asked_route import ASK_S, AskedRoute, HostPort, port_of
from cachebus.resp.cluster_answers import ClusterAnswers, NodeIds
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


class Answer(NamedTuple):
    """What a node says: by shard where its primary is, and the ids of all nodes that it names."""

    node: Address
    host_ports: list[HostPort | None]
    ids: NodeIds


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
        self._ids = NodeIds()
        """Those of our Cluster's nodes, as they said them last: addresses change, and others come to stand there."""
        self._strangers = Strangers(clock)

    async def _found(self) -> tuple[list[Address | None], bool]:
        """For each shard what two nodes say; where no two agree on all, what most say. A single one may be cut off from
        the others, or belong to another Cluster by now. Two are asked at once, others each time, and the next one soon
        where one does not answer or they do not agree. The first time most of the nodes that are named decide which
        Cluster is ours, so all of them are waited for unless most agree."""
        nodes = list(dict.fromkeys([*filter(None, self.known), *self._seeds]))
        self._turn += 1
        turn = self._turn % len(nodes)
        waiting = [*nodes[turn:], *nodes[:turn]]
        asking = {asyncio.create_task(self._map_of(node)) for node in waiting[:ASKED_AT_ONCE]}
        del waiting[:ASKED_AT_ONCE]
        is_first = not self._ids.nodes
        answers, others = ClusterAnswers[HostPort](len(nodes) if is_first else 0), ClusterAnswers[HostPort](0)
        troubles: dict[str, None] = {}
        until_s = float("inf")
        try:
            while asking and not answers.are_enough and self._clock() < until_s:
                left_s = max(0.0, min(until_s - self._clock(), NEXT_NODE_S if waiting else ASK_S))
                done, asking = await asyncio.wait(asking, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                self._take_in(done, answers, others, troubles)
                if answers.have_all and not is_first:
                    until_s = min(until_s, self._clock() + AGREE_S)
                if waiting and not (done and asking):
                    asking.add(asyncio.create_task(self._map_of(waiting.pop(0))))
        finally:
            await ended(*asking)
        named = set(self._seeds).intersection(others.nodes)
        self._strangers.note_round(most_are_strange=not answers and 2 * len(named) > len(self._seeds))
        if self._strangers.are_believed:
            answers = others
        if not answers:
            raise L2Unavailable(f"no node of the Cluster says where its slots are: {'; '.join(troubles)}")
        host_ports, ids = answers.believed()
        if answers.strangers:
            logger.warning("{}: passed over, as of another Cluster: {}", self, ", ".join(map(str, answers.strangers)))
        self._ids = ids if ids.nodes else self._ids
        return self._addresses(host_ports), False

    async def verify(self, link: Link, address: Address) -> None:
        """See `Route.verify`. One that is in no Cluster, or in another one, answers all that it is asked: nothing else
        would ever tell that its shards are served elsewhere."""
        try:
            ids = await link.call("CLUSTER", "SLOTS", reads=_ids)
        except L2Unavailable as error:
            raise L2Unavailable(f"{address} does not say that it is a node of the Cluster: {error}") from None
        if not self._ids.nodes:
            return
        if not ids.are_of(self._ids):
            what = "a node of another Cluster" if ids.nodes else "a node that knows no other"
            raise L2Unavailable(f"{address} is {what}")
        self._ids = self._ids.with_others(ids)

    def _take_in(
        self,
        done: set[asyncio.Task[Answer]],
        answers: ClusterAnswers[HostPort],
        others: ClusterAnswers[HostPort],
        troubles: dict[str, None],
    ) -> None:
        """Take in what nodes have said. Where our own Cluster is known, those of `others` are kept apart."""
        for task in done:
            try:
                node, host_ports, ids = task.result()
            except L2Unavailable as error:
                troubles[str(error)] = None
                continue
            if not self._ids.nodes or not ids.nodes or ids.are_of(self._ids):
                answers.add(node, host_ports, ids)
            else:
                troubles["a node of another Cluster answers"] = None
                others.add(node, host_ports, ids)

    def _addresses(self, host_ports: list[HostPort | None]) -> list[Address | None]:
        at = {each: replace(self._seeds[0], host=each[0], port=each[1]) for each in set(host_ports) if each}
        return [None if each is None else at[each] for each in host_ports]

    async def _map_of(self, node: Address) -> Answer:
        """What a node says."""
        ranges, ids = await self._asked(node, ("CLUSTER", "SLOTS"), _map)
        firsts = [first for first, *_ in ranges]
        host_ports: list[HostPort | None] = []
        for slot in self._slots:
            at = bisect_right(firsts, slot) - 1
            _, last, host, port = ranges[at] if at >= 0 else (0, -1, "", 0)
            host_ports.append((host or node.host, port) if port and slot <= last else None)
        return Answer(node, host_ports, ids)

    def beside(self, shard: int, host: str, port: int) -> Address:
        """See `Route.beside`."""
        known = self.known[shard] or self._seeds[0]
        return replace(known, host=host or known.host, port=port)

    def __str__(self) -> str:
        return f"the Cluster of {', '.join(map(str, self._seeds))}"


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
    named = dict(zip(node[3][::2], node[3][1::2], strict=True)) if len(node) > 3 else {}
    return (named.get(b"ip") or b"").decode()


def _ids(reply: Any) -> NodeIds:
    """The ids of all nodes that CLUSTER SLOTS names. What only looks like a Cluster may tell none."""
    named = [[node[2].decode() for node in nodes if len(node) > 2] for _, _, *nodes in reply]
    return NodeIds(frozenset(row[0] for row in named if row), frozenset(one for row in named for one in row))


def _map(reply: Any) -> tuple[list[Range], NodeIds]:
    return sorted(_ranges(reply)), _ids(reply)


def slot_of(name: str) -> int:
    """The Cluster slot of a key or channel: that of its hash tag, the part in the first braces, if it has one."""
    _, opened, rest = name.partition("{")
    tag, closed, _ = rest.partition("}")
    return crc_hqx((tag if opened and closed and tag else name).encode(), 0) % SLOTS
