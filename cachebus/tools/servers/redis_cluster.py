"""A Cluster on 127.0.0.1. Failovers take two seconds or three."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cachebus.errors import L2Unavailable
from cachebus.resp import slot_of
from cachebus.resp.cluster_map import SLOTS
from cachebus.tools.servers.redis import HOST, EmbeddedServer, ServerBinary
from cachebus.tools.servers.redis_group import Front, ServerGroup, ask, facts_of

NODE_TIMEOUT_MS: Final = 1_000
"""After so long without an answer a node is held for dead."""
BUS: Final = 10_000
"""So far behind a node's port is that of its bus."""


class ClusterGroup(ServerGroup):
    """A Cluster of so many primaries, each with so many replicas. `min_replicas`: as of a `SentinelGroup`."""

    def __init__(
        self,
        binary: ServerBinary | None = None,
        *,
        primaries: int = 3,
        replicas: int = 1,
        min_replicas: int = 0,
        front: Front | None = None,
    ) -> None:
        conf = [
            *("cluster-enabled yes", f"cluster-node-timeout {NODE_TIMEOUT_MS}", "cluster-migration-barrier 99"),
            *("cluster-replica-validity-factor 0", "cluster-require-full-coverage no"),
            *(f"min-replicas-to-write {min_replicas}", "min-replicas-max-lag 1"),
        ]
        super().__init__(binary, conf, front)
        self._counts = primaries, replicas

    @property
    def url(self) -> str:
        """How clients reach the Cluster."""
        hosts = ",".join(f"{HOST}:{self.place(server)}" for server in self.servers)
        return f"redis+cluster://{hosts}"

    def _fronted(self, port: int) -> Sequence[int]:
        return (port, port + BUS)

    def _announced(self, port: int) -> Sequence[str]:
        own = f"cluster-announce-port {self._fronts[port]}", f"cluster-announce-bus-port {self._fronts[port + BUS]}"
        return (*super()._announced(port), *own)

    async def start(self) -> None:
        """Start the nodes, give out the slots, and wait until all agree."""
        primaries, replicas = self._counts
        for _ in range(primaries * (1 + replicas)):
            self.servers.append(self._holding(await self._port()).start())
        await self._port()
        heads = self.servers[:primaries]
        for i, server in enumerate(heads):
            slots = range(SLOTS * i // primaries, SLOTS * (i + 1) // primaries)
            await ask(server, "CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            await ask(server, "CLUSTER", "ADDSLOTS", *slots)
        for server in self.servers[1:]:
            await self._meet(self.servers[0], server)
        await self._until(self._all_known, "the nodes of the Cluster")
        for i, server in enumerate(self.servers[primaries:]):
            await ask(server, "CLUSTER", "REPLICATE", await self.id_of(heads[i % primaries]))
        await self._until(self._whole, "the Cluster")

    async def _meet(self, known: EmbeddedServer, server: EmbeddedServer) -> None:
        bus = server.port + BUS
        await ask(known, "CLUSTER", "MEET", HOST, self.place(server), self._fronts.get(bus, bus))

    async def follow(self, server: EmbeddedServer, primary: EmbeddedServer) -> None:
        """Have a server that is new be one of the Cluster, and a replica of a primary."""
        its_id = await self.id_of(primary)
        await self._meet(primary, server)

        async def known() -> bool:
            return its_id.encode() in await ask(server, "CLUSTER", "NODES")

        await self._until(known, "a new node of the Cluster")
        await ask(server, "CLUSTER", "REPLICATE", its_id)

    async def forget(self, node_id: str) -> None:
        """Have all servers forget one that is gone for good."""
        for server in self.servers:
            if server.running:
                with suppress(L2Unavailable):  # it does not know it any more
                    await ask(server, "CLUSTER", "FORGET", node_id)

    async def be_patient(self, down_ms: int = NODE_TIMEOUT_MS) -> None:
        """Hold a node for dead only after so long without an answer."""
        for server in self.servers:
            with suppress(L2Unavailable):
                await ask(server, "CONFIG", "SET", "cluster-node-timeout", down_ms)

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
        """Every node sees all slots served, and every replica follows."""
        primaries, replicas = self._counts
        for server in self.servers:
            if (await facts_of(server, "CLUSTER", "INFO"))["cluster_state"] != "ok":
                return False
            ranges = await ask(server, "CLUSTER", "SLOTS")
            if len(ranges) != primaries or any(len(each) != 3 + replicas for each in ranges):
                return False
        for server in self.servers[primaries:]:
            if (await facts_of(server, "INFO", "replication")).get("master_link_status") != "up":
                return False
        return True

    async def primary_of(self, name: str, *, but: EmbeddedServer | None = None) -> EmbeddedServer:
        """The node that serves a key's or channel's slot now, by what most nodes say; `L2Unavailable`. `but`: one that
        is not asked, as it may not answer."""
        slot, votes = slot_of(name), list[int]()
        for server in self.servers:
            if server is not but and server.running:
                try:
                    ranges = await ask(server, "CLUSTER", "SLOTS")
                except L2Unavailable:
                    continue
                votes += [primary[1] for first, last, primary, *_ in ranges if first <= slot <= last]
        if not votes:
            raise L2Unavailable(f"no node serves slot {slot}")
        port = max(set(votes), key=votes.count)
        found = [server for server in self.servers if self.place(server) == port]
        if not found:  # port 0: it is known to have the slot, and not where it is
            raise L2Unavailable(f"nobody knows where the primary of slot {slot} is")
        return found[0]

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
        """Move these keys, of a slot that is being moved."""
        names = [key.decode(errors="surrogateescape") for key in keys]
        await ask(source, "MIGRATE", HOST, target.port, "", 0, 5000, "REPLACE", "KEYS", *names)

    def _others(self, *known: EmbeddedServer) -> list[EmbeddedServer]:
        return [server for server in self.servers if server not in known and server.running]
