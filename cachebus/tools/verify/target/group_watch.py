"""What a group of servers does with no fault behind it. On a busy machine Sentinels and Clusters fail over by
themselves, and a primary refuses writes as its replicas are late: that is amiss, but not with the cache."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import L2Unavailable
from cachebus.resp import Connection, ended, parse_address
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.verify.target.group import GroupUnderTest
from cachebus.tools.verify.target.testbed import InjectedFault

BY_ITSELF: Final = "by-itself"
"""The name under which this counts among the faults."""
EVERY_S: Final = 0.05
ANSWER_S: Final = 0.5
"""A server that does not answer for so long is asked again. That tells nothing: a slow server would be found guilty."""
AFTER_S: Final = 1.0
"""A fault may show for so long after its end."""


class ServerState(NamedTuple):
    """What a server says of itself. Another role or replication is a failover; one more copy, a replica that had lost
    touch."""

    role: str
    replication: str
    copies: int
    """How many replicas have copied all data from it."""
    takes_writes: bool
    shards: frozenset[int]
    """Those with items that it is the primary of, by its own word: others hear of a failover later."""


@dataclass
class _Known:
    """A server, as it was at the last look."""

    connection: Connection | None = None
    standing: ServerState | None = None
    seen_s: float = 0.0
    """When it was last seen in order."""
    shards: frozenset[int] | None = None
    """Of what is amiss now; None while nothing is."""


@dataclass
class GroupWatch:
    """Looks at each server of a group all the time; an async context manager."""

    group: GroupUnderTest
    amiss: list[InjectedFault] = field(default_factory=list)
    """Each time that something was, and is no more."""
    _known: dict[int, _Known] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._looking.done():
            self._looking.result()
        await ended(self._looking)
        for known in self._known.values():
            self._end(known)

    async def _look_on(self) -> None:
        while True:
            self._forget_replaced()
            await asyncio.gather(*(self._look(server) for server in self.group.data if server.running))
            await asyncio.sleep(EVERY_S)

    def _forget_replaced(self) -> None:
        for port in self._known.keys() - {server.port for server in self.group.data}:
            self._end(self._known.pop(port))

    def _end(self, known: _Known) -> None:
        if known.shards is not None:
            self.amiss.append(self._amiss(known))
        if known.connection is not None:
            known.connection.close()

    async def _look(self, server: EmbeddedServer) -> None:
        known = self._known.setdefault(server.port, _Known())
        began_s = monotonic()
        try:
            standing = await self._ask(server, known)
        except L2Unavailable:
            if known.connection is not None:
                known.connection.close()
            known.connection = None
            return
        changed = known.standing is not None and known.standing[:3] != standing[:3]
        concerned = standing.shards | (known.standing or standing).shards
        if changed or not standing.takes_writes:
            known.shards = concerned | (known.shards or frozenset())
        elif known.shards is not None:
            known.shards |= concerned
            self.amiss.append(self._amiss(known))
            known.shards = None
        known.standing = standing
        if known.shards is None:
            known.seen_s = began_s

    def _amiss(self, known: _Known) -> InjectedFault:
        return InjectedFault(BY_ITSELF, 0, known.seen_s, monotonic(), known.shards)

    async def _ask(self, server: EmbeddedServer, known: _Known) -> ServerState:
        connection = known.connection
        if connection is None:
            address = parse_address(server.url)
            connection = await Connection.open(address, Patience(ANSWER_S, ANSWER_S, monotonic))
            known.connection = connection
        cluster = [("CLUSTER", "INFO"), ("CLUSTER", "NODES")] if self.group.cluster else []
        asked = [("INFO", "replication"), ("INFO", "stats"), *cluster]
        texts = [(await connection.call(*words)).decode() for words in asked]
        facts = dict(line.partition(":")[::2] for text in texts[:3] for line in text.splitlines())
        if facts["role"] != "master":
            return ServerState(facts["role"], "", 0, takes_writes=True, shards=frozenset())
        writes = int(facts.get("min_slaves_good_slaves", 0)) >= self.group.least
        writes = writes and facts.get("cluster_state", "ok") == "ok"
        shards = self.group.shards_in(_own_slots(texts[3]) if cluster else None)
        return ServerState(facts["role"], facts["master_replid"], int(facts["sync_full"]), writes, shards)

    def unprovoked(self, injected: Iterable[InjectedFault]) -> list[InjectedFault]:
        """Whatever was amiss, but for what a fault of the same servers explains."""
        faults = [done for done in injected if not done.node]
        still = [known for known in self._known.values() if known.shards is not None]
        return [
            seen
            for seen in (*self.amiss, *(self._amiss(known) for known in still))
            if not any(_explains(done, seen) for done in faults)
        ]


def _own_slots(nodes: str) -> list[range]:
    """The slots that whoever gave this text of CLUSTER NODES says that it has."""
    (own,) = (line.split()[8:] for line in nodes.splitlines() if "myself" in line.split()[2])
    spans = [span.partition("-") for span in own if not span.startswith("[")]  # one in brackets is on its way
    return [range(int(first), int(last or first) + 1) for first, _, last in spans]


def _explains(fault: InjectedFault, seen: InjectedFault) -> bool:
    # It was in order at `from_s`, and was found to be amiss by the look after that one.
    if fault.from_s > seen.from_s + EVERY_S + ANSWER_S or seen.until_s > fault.until_s + AFTER_S:
        return False
    return fault.shards is None or (seen.shards is not None and seen.shards <= fault.shards)
