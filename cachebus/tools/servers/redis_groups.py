"""Several servers that form one service on 127.0.0.1: a primary with replicas and Sentinels, or a Cluster.

One program serves as data server, Sentinel and Cluster node. A failover takes a second or two.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

from cachebus.base.clock import monotonic
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.resp import Connection, parse_address, slot_of
from cachebus.resp.cluster_map import SLOTS
from cachebus.tools.servers.redis import HOST, EmbeddedServer, ServerBinary, best_server

SERVICE: Final = "mymaster"
READY_S: Final = 30.0
POLL_S: Final = 0.02
TIMEOUT_S: Final = 5.0
DOWN_MS: Final = 500
"""After so long without an answer Sentinels take a primary for dead."""
_QUICK: Final = ("repl-diskless-sync-delay 0", "repl-ping-replica-period 1", "repl-timeout 5")


async def ask(server: EmbeddedServer, *command: str | int) -> Any:
    """One command over a connection of its own; `L2Unavailable`."""
    connection = await Connection.open(
        parse_address(server.url), timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, clock=monotonic
    )
    try:
        return await connection.call(*command)
    finally:
        connection.close()


async def _facts(server: EmbeddedServer, *command: str) -> dict[str, str]:
    """The lines `name:value` of a reply, such as that of INFO."""
    lines = (await ask(server, *command)).decode().splitlines()
    return dict(line.partition(":")[::2] for line in lines if ":" in line)


class Group(ABC):
    """Servers that are started and stopped together; an async context manager."""

    def __init__(self) -> None:
        self.servers: list[EmbeddedServer] = []

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    @property
    @abstractmethod
    def url(self) -> str:
        """How a cache reaches them."""

    @abstractmethod
    async def start(self) -> None:
        """Start all, and wait until they form one service."""

    def stop(self) -> None:
        """End them all."""
        for server in self.servers:
            server.stop()

    @property
    def pids(self) -> set[int]:
        """The processes that run."""
        return {server.pid for server in self.servers if server.running}

    async def _until(self, met: Callable[[], Any], what: str) -> None:
        deadline_s = monotonic() + READY_S
        while True:
            try:
                if await met():
                    return
            except L2Unavailable:
                pass
            if monotonic() > deadline_s:
                logs = "\n".join(server.log_tail() for server in self.servers)
                raise ConfigError(f"{what}: not after {READY_S:g} s\n{logs}")
            await asyncio.sleep(POLL_S)


class SentinelGroup(Group):
    """A primary, replicas and Sentinels.

    `min_replicas`: how many replicas must have confirmed within a second for the primary to take writes.
    """

    def __init__(
        self, binary: ServerBinary | None = None, *, replicas: int = 2, sentinels: int = 3, min_replicas: int = 0
    ) -> None:
        super().__init__()
        self._binary = binary or best_server()
        self._counts = replicas, sentinels
        self._watched_by = {"down-after-milliseconds": DOWN_MS, "failover-timeout": 3000, "parallel-syncs": replicas}
        self._conf = [*_QUICK, f"min-replicas-to-write {min_replicas}", "min-replicas-max-lag 1"]
        self.data: list[EmbeddedServer] = []
        """The servers that hold data: first the one that was the primary at the start."""
        self.sentinels: list[EmbeddedServer] = []

    @property
    def url(self) -> str:
        """How clients reach the service."""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    async def start(self) -> None:
        """Start data servers, then Sentinels, until each knows all the others."""
        replicas, sentinels = self._counts
        primary = EmbeddedServer(self._binary, conf=self._conf).start()
        self.data = [primary]
        self.servers = [primary]
        for _ in range(replicas):
            replica = EmbeddedServer(self._binary, conf=[*self._conf, f"replicaof {HOST} {primary.port}"])
            self.data.append(replica)
            self.servers.append(replica.start())
        await self._until(lambda: self._replicas_up(primary, replicas), "replicas")
        quorum = sentinels // 2 + 1
        conf = [f"sentinel monitor {SERVICE} {HOST} {primary.port} {quorum}"]
        conf += [f"sentinel {option} {SERVICE} {value}" for option, value in self._watched_by.items()]
        for _ in range(sentinels):
            sentinel = EmbeddedServer(self._binary, extra=("--sentinel",), conf=conf)
            self.sentinels.append(sentinel)
            self.servers.append(sentinel.start())
        await self._until(self._sentinels_know_all, "Sentinels")

    async def _online(self, primary: EmbeddedServer) -> int:
        facts = await _facts(primary, "INFO", "replication")
        return sum("state=online" in value for value in facts.values())

    async def _replicas_up(self, primary: EmbeddedServer, count: int) -> bool:
        return await self._online(primary) == count

    async def _sentinels_know_all(self) -> bool:
        for sentinel in self.sentinels:
            flat = await ask(sentinel, "SENTINEL", "MASTER", SERVICE)
            facts = dict(zip(flat[::2], flat[1::2], strict=True))
            counts = int(facts[b"num-slaves"]), int(facts[b"num-other-sentinels"])
            if counts != (len(self.data) - 1, len(self.sentinels) - 1):
                return False
        return True

    async def primary(self) -> EmbeddedServer:
        """The primary that a Sentinel names, and that says so itself; `L2Unavailable` during a failover."""
        for sentinel in self.sentinels:
            if sentinel.running:
                place = await ask(sentinel, "SENTINEL", "get-master-addr-by-name", SERVICE)
                (server,) = [server for server in self.data if server.port == int(place[1])]
                if server.running and (await ask(server, "ROLE"))[0] == b"master":
                    return server
        raise L2Unavailable("no primary at present")

    async def followers(self) -> int:
        """How many replicas follow the primary directly; 0 if there is no primary."""
        try:
            return await self._online(await self.primary())
        except L2Unavailable:
            return 0

    async def set_right(self) -> None:
        """Repair the group as an operator does, if Sentinels take a replica for the primary, or replicas follow each
        other, which they may notice only after minutes. Some server that is a primary is declared to be the primary."""
        heads = [server for server in self.data if (await ask(server, "ROLE"))[0] == b"master"]
        head = heads[0] if heads else self.data[0]
        await ask(head, "REPLICAOF", "NO", "ONE")
        for server in self.data:
            if server is not head:
                await ask(server, "REPLICAOF", HOST, head.port)
        for sentinel in self.sentinels:
            await ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
            await ask(sentinel, "SENTINEL", "MONITOR", SERVICE, HOST, head.port, self._counts[1] // 2 + 1)
            for option, value in self._watched_by.items():
                await ask(sentinel, "SENTINEL", "SET", SERVICE, option, value)

    async def until_replicas(self, count: int) -> None:
        """Wait until so many replicas follow the primary."""

        async def met() -> bool:
            return await self._replicas_up(await self.primary(), count)

        await self._until(met, "replicas")


class ClusterGroup(Group):
    """A Cluster. `primaries`: how many. `replicas`: of each primary. `min_replicas`: as for a `SentinelGroup`."""

    def __init__(
        self, binary: ServerBinary | None = None, *, primaries: int = 3, replicas: int = 1, min_replicas: int = 0
    ) -> None:
        super().__init__()
        self._min_replicas = min_replicas
        self._binary = binary or best_server()
        self._counts = primaries, replicas

    @property
    def url(self) -> str:
        """How clients reach the Cluster."""
        hosts = ",".join(f"{HOST}:{server.port}" for server in self.servers)
        return f"redis+cluster://{hosts}"

    async def start(self) -> None:
        """Start the nodes, assign the slots, and wait until all nodes agree."""
        primaries, replicas = self._counts
        conf = [
            *(*_QUICK, "cluster-enabled yes", "cluster-node-timeout 1000", "cluster-migration-barrier 99"),
            *("cluster-replica-validity-factor 0", "cluster-require-full-coverage no"),
            *(f"min-replicas-to-write {self._min_replicas}", "min-replicas-max-lag 1"),
        ]
        for _ in range(primaries * (1 + replicas)):
            self.servers.append(EmbeddedServer(self._binary, conf=conf).start())
        heads = self.servers[:primaries]
        for i, server in enumerate(heads):
            slots = range(SLOTS * i // primaries, SLOTS * (i + 1) // primaries)
            await ask(server, "CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            await ask(server, "CLUSTER", "ADDSLOTS", *slots)
        for server in self.servers[1:]:
            await ask(self.servers[0], "CLUSTER", "MEET", HOST, server.port)
        await self._until(self._all_known, "the nodes of the Cluster")
        for i, server in enumerate(self.servers[primaries:]):
            await ask(server, "CLUSTER", "REPLICATE", await self.id_of(heads[i % primaries]))
        await self._until(self._whole, "the Cluster")

    async def id_of(self, server: EmbeddedServer) -> str:
        """A node's id in the Cluster."""
        return str((await ask(server, "CLUSTER", "MYID")).decode())

    async def _all_known(self) -> bool:
        for server in self.servers:
            nodes = (await ask(server, "CLUSTER", "NODES")).decode().splitlines()
            if len(nodes) != len(self.servers) or any("handshake" in node for node in nodes):
                return False
        return True

    async def _whole(self) -> bool:
        """Whether every node sees all slots served, and every replica follows."""
        primaries, replicas = self._counts
        for server in self.servers:
            if (await _facts(server, "CLUSTER", "INFO"))["cluster_state"] != "ok":
                return False
            ranges = await ask(server, "CLUSTER", "SLOTS")
            if len(ranges) != primaries or any(len(each) != 3 + replicas for each in ranges):
                return False
        for server in self.servers[primaries:]:
            if (await _facts(server, "INFO", "replication")).get("master_link_status") != "up":
                return False
        return True

    async def primary_of(self, name: str) -> EmbeddedServer:
        """The node that serves the slot of a key or channel now, as most nodes say; `L2Unavailable`."""
        slot, votes = slot_of(name), list[int]()
        for server in self.servers:
            if server.running:
                try:
                    ranges = await ask(server, "CLUSTER", "SLOTS")
                except L2Unavailable:
                    continue
                votes += [primary[1] for first, last, primary, *_ in ranges if first <= slot <= last]
        if not votes:
            raise L2Unavailable(f"no node serves slot {slot}")
        port = max(set(votes), key=votes.count)
        (server,) = [server for server in self.servers if server.port == port]
        return server

    async def move_slot(self, slot: int, source: EmbeddedServer, target: EmbeddedServer) -> None:
        """Move a slot with its keys from one primary to another, while clients go on."""
        source_id, target_id = await self.id_of(source), await self.id_of(target)
        await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := await ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            await self.migrate(source, target, keys)
        for server in (target, source, *self._others(source, target)):
            if (await ask(server, "ROLE"))[0] == b"master":
                await ask(server, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    async def migrate(self, source: EmbeddedServer, target: EmbeddedServer, keys: Sequence[bytes]) -> None:
        """Move these keys of a slot that is being moved."""
        names = [key.decode(errors="surrogateescape") for key in keys]
        await ask(source, "MIGRATE", HOST, target.port, "", 0, 5000, "REPLACE", "KEYS", *names)

    def _others(self, *known: EmbeddedServer) -> list[EmbeddedServer]:
        return [server for server in self.servers if server not in known and server.running]
