"""Several servers of the run's own as one service under test: behind Sentinels, or as a Cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random
from typing import Final, Literal

from cachebus.base.clock import monotonic
from cachebus.errors import L2Unavailable
from cachebus.keys.key import shard_of
from cachebus.l2.names import ShardNames
from cachebus.resp import Address, slot_of
from cachebus.settings import CLUSTER_SHARDS
from cachebus.tools.doctor.counting import needed
from cachebus.tools.harness.proxy import HOST, Dial, Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer, ServerBinary
from cachebus.tools.servers.redis_cluster import BUS, ClusterGroup
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup
from cachebus.tools.verify.fleet.items import TENANTS
from cachebus.tools.verify.target.server import ServerProcess, ServerUnderTest

Kind = Literal["sentinel", "cluster"]
LOOK_S: Final = 0.05
PROMOTED_S: Final = 8.0
"""How long a failover is waited for. After that the old primary is brought back."""
REST_MS: Final = 10_000
"""Once all is repaired, a primary is held for dead only after so long: that this machine is busy is no failover."""


class GroupUnderTest:
    """A group of servers: what a run needs of it, and what faults may do to it."""

    machine: ServerProcess | None = None
    dial: Dial | None = None

    def __init__(
        self,
        group: SentinelGroup | ClusterGroup,
        kind: Kind,
        version: str,
        namespace: str,
        networks: Mapping[int, Proxy],
        least: int,
    ) -> None:
        self.group: GroupUnderTest | None = self
        self.name = f"{version} {kind}"
        self.label = f"{len(group.servers)} processes of {version} of its own: {kind}"
        self.namespace = namespace
        self.least = least
        """How many replicas a primary needs to take writes."""
        self._group = group
        self._networks = networks
        shards = CLUSTER_SHARDS if kind == "cluster" else 1
        self._shards = sorted({shard_of(tenant, shards) for tenant in (*TENANTS, "")})

    @property
    def dials(self) -> Mapping[int, Dial]:
        """How a proxy reaches each of its processes, and the one to come, by the port that nodes know."""
        ports = {sentinel.port: sentinel.port for sentinel in self.sentinels} | self._group.places
        return {place: dialer(Address(HOST, port)) for place, port in ports.items()}

    def place(self, server: EmbeddedServer) -> int:
        """The port by which the nodes know one of its processes."""
        return self._group.place(server)

    def network_of(self, server: EmbeddedServer) -> list[Proxy]:
        """All that leads from other servers, and from Sentinels, to one that holds data."""
        ports = server.port, server.port + BUS
        return [self._networks[port] for port in ports if port in self._networks]

    @property
    def sentinels(self) -> list[EmbeddedServer]:
        """The Sentinels, if there are any."""
        return self._group.sentinels if isinstance(self._group, SentinelGroup) else []

    def url(self, proxy_port: int | None) -> str:
        """The URL for the nodes."""
        return self._group.url

    def other(self, url: str) -> str:
        """The same URL: a group is tested in one database only."""
        return url

    def some_shard(self, dice: Random) -> ShardNames:
        """A random shard of those that have items."""
        return ShardNames(self.namespace, dice.choice(self._shards))

    def only(self, names: ShardNames) -> frozenset[int]:
        """The number of the shard with these names, as a set."""
        return frozenset(shard for shard in self._shards if ShardNames(self.namespace, shard).meta == names.meta)

    async def shards_at(self, *primaries: EmbeddedServer | None) -> frozenset[int]:
        """The shards with items that lie on these primaries now."""
        return frozenset(
            [shard for shard in self._shards if await self.primary(ShardNames(self.namespace, shard)) in primaries]
        )

    async def shards_beside(self, names: ShardNames, primary: EmbeddedServer | None) -> frozenset[int]:
        """The shards on this primary, at which a look has found the shard with these names: that one is among them,
        whoever has it by now."""
        return self.only(names) | await self.shards_at(primary)

    def shards_in(self, slots: Sequence[range] | None) -> frozenset[int]:
        """The shards with items that lie in these slots of a Cluster; None: all that there are."""
        return frozenset(
            shard
            for shard in self._shards
            if slots is None or any(slot_of(ShardNames(self.namespace, shard).log) in span for span in slots)
        )

    @property
    def data(self) -> list[EmbeddedServer]:
        """The servers that hold data, so without Sentinels."""
        return self._group.data if isinstance(self._group, SentinelGroup) else self._group.servers

    @property
    def cluster(self) -> ClusterGroup | None:
        """The Cluster, if it is one."""
        return self._group if isinstance(self._group, ClusterGroup) else None

    async def primary(self, names: ShardNames, *, but: EmbeddedServer | None = None) -> EmbeddedServer | None:
        """The shard's primary; None in between. `but`: one that may not answer."""
        try:
            if isinstance(self._group, SentinelGroup):
                return await self._group.primary(but=but)
            return await self._group.primary_of(names.log, but=but)
        except L2Unavailable:
            return None

    async def replicas(self, primary: EmbeddedServer) -> list[EmbeddedServer]:
        """The replicas that follow this primary."""
        found = []
        for server in self.data:
            if server is not primary and server.running:
                with suppress(L2Unavailable):
                    role = await ask(server, "ROLE")
                    if role[0] == b"slave" and role[2] == self.place(primary):
                        found.append(server)
        return found

    async def some_primary(self, rather: EmbeddedServer) -> EmbeddedServer:
        """The preferred server, if it is a primary, otherwise another primary."""
        for server in (rather, *self.data):
            with suppress(L2Unavailable):
                if server.running and (await ask(server, "ROLE"))[0] == b"master":
                    return server
        return rather

    async def command(self, server: EmbeddedServer, *command: str | int) -> None:
        """Send a command whose answer, or error, does not matter."""
        with suppress(L2Unavailable):
            await ask(server, *command)

    async def written(self, server: EmbeddedServer, *, within_s: float) -> None:
        """Until a server takes writes, or until that takes too long."""
        until_s = monotonic() + within_s
        while monotonic() < until_s:
            with suppress(L2Unavailable):  # NOREPLICAS
                await ask(server, "DEL", f"{self.namespace}:nothing")
                return
            await asyncio.sleep(LOOK_S)

    async def move(self, names: ShardNames, dice: Random) -> None:
        """Move a shard's slot, with its keys, to another primary. Nothing happens without a healthy Cluster."""
        cluster, source = self.cluster, await self.primary(names)
        if cluster is None or source is None:
            return
        with suppress(L2Unavailable):  # if a server is away, the slot may be left half moved
            others = [server for server in cluster.servers if server is not source]
            target = dice.choice([server for server in others if (await ask(server, "ROLE"))[0] == b"master"])
            try:
                await cluster.move_slot(slot_of(names.log), source, target)
            finally:
                for server in (source, target):
                    await self.command(server, "CLUSTER", "SETSLOT", slot_of(names.log), "STABLE")

    async def half_move(
        self, names: ShardNames, dice: Random, lasts: Callable[[], Awaitable[None]], *, hangs: bool
    ) -> frozenset[int]:
        """Move a part of a slot's keys to another primary, which may hang meanwhile, and move them back. Returns the
        shards that this may have made unavailable."""
        cluster, source, slot = self.cluster, await self.primary(names), slot_of(names.log)
        concerned = self.only(names)
        if cluster is None or source is None:
            return concerned
        with suppress(L2Unavailable):
            others = [server for server in cluster.servers if server is not source and server.running]
            target = dice.choice([server for server in others if (await ask(server, "ROLE"))[0] == b"master"])
            await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await cluster.id_of(source))
            try:
                await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await cluster.id_of(target))
                if keys := await ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 20):
                    await cluster.migrate(source, target, keys[: len(keys) // 2 + 1])
                if hangs:
                    concerned |= await self.shards_at(target)
                    target.pause()
                await lasts()
            finally:
                if target.running:
                    target.resume()
                await self._settle(names)
        return concerned

    async def _settle(self, names: ShardNames) -> None:
        """Repair a slot: one primary has it, with all its keys, and nobody is moving it."""
        cluster, owner, slot = self.cluster, await self.primary(names), slot_of(names.log)
        for server in () if cluster is None else cluster.servers:
            with suppress(L2Unavailable):
                if not server.running or (await ask(server, "ROLE"))[0] != b"master":
                    continue
                while cluster and owner and server is not owner:
                    keys = await ask(server, "CLUSTER", "GETKEYSINSLOT", slot, 100)
                    if not keys:
                        break
                    await cluster.migrate(server, owner, keys)
            await self.command(server, "CLUSTER", "SETSLOT", slot, "STABLE")

    async def hand_over(self, names: ShardNames, dice: Random) -> None:
        """Order a failover from a primary that is alive, as for maintenance."""
        if self.sentinels:
            await self.command(dice.choice(self.sentinels), "SENTINEL", "FAILOVER", SERVICE)
            return
        primary = await self.primary(names)
        replicas = [] if primary is None else await self.replicas(primary)
        if replicas:
            await self.command(dice.choice(replicas), "CLUSTER", "FAILOVER")

    async def follow(self, server: EmbeddedServer, primary: EmbeddedServer) -> None:
        """Have a server be a replica of a primary, if both are there."""
        with suppress(L2Unavailable):
            await self._group.follow(server, primary)

    async def replace(self, gone: EmbeddedServer) -> EmbeddedServer:
        """A new server, which has nothing and follows nobody, in the place of one that never comes back."""
        node_id = "" if self.cluster is None else await self.cluster.id_of(gone)
        fresh = self._group.replace(gone)
        if self.cluster is not None:
            await self.cluster.forget(node_id)
        return fresh

    async def be_patient(self, down_ms: int | None = None) -> None:
        """Have a primary be held for dead only after so long; None: as at the start."""
        await (self._group.be_patient() if down_ms is None else self._group.be_patient(down_ms))

    async def calm(self) -> bool:
        """Wait until no failover is under way among Sentinels, as one that the machine has caused; False where that
        takes too long."""
        group = self._group
        until_s = monotonic() + PROMOTED_S
        while isinstance(group, SentinelGroup) and not await group.is_calm():
            if monotonic() > until_s:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def repair(self) -> None:
        """Repair it: every process runs, and every shard has a primary with replicas."""
        for server in self._group.servers:
            if server.running:
                server.resume()
            server.start()
        for proxy in self._networks.values():
            proxy.restore()
        for shard in self._shards:
            await self.promoted(ShardNames(self.namespace, shard))
            await self._settle(ShardNames(self.namespace, shard))
        await self.followed(len(self.data) - 1)
        await self.be_patient(REST_MS)

    async def followed(self, count: int | None = None) -> None:
        """Wait until so many replicas follow the primary of the Sentinels; by default, as many as it needs to take
        writes. If they do not in time, as Sentinels may have chained them, repair the group."""
        group = self._group
        if not isinstance(group, SentinelGroup):
            return
        count = needed(len(group.data) - 1) if count is None else count
        for _ in range(2):
            until_s = monotonic() + PROMOTED_S
            while monotonic() < until_s:
                if await group.followers() >= count:
                    return
                await asyncio.sleep(LOOK_S)
            with suppress(L2Unavailable):
                await group.set_right()

    @property
    def is_one(self) -> bool:
        """Whether all shards lie on one primary, so that all of L2 is away when that is."""
        return isinstance(self._group, SentinelGroup)

    async def promoted(self, names: ShardNames, old: EmbeddedServer | None = None) -> None:
        """Until a shard has a primary, another than the old one; or until that takes too long."""
        until_s = monotonic() + PROMOTED_S
        while monotonic() < until_s:
            if await self.primary(names, but=old) not in (None, old):
                return
            await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def grouped(kind: Kind, binary: ServerBinary, namespace: str, seed: int) -> AsyncIterator[ServerUnderTest]:
    """A group that is ready: its primaries have two or three replicas (Sentinel), or one or two (Cluster)."""
    replicas = seed % 2 + (2 if kind == "sentinel" else 1)
    # Else a deposed primary would go on acknowledging what is lost: the promises need this setting.
    least = needed(replicas)
    networks: dict[int, Proxy] = {}
    async with AsyncExitStack() as stack:

        async def front(port: int) -> int:
            networks[port] = proxy = await stack.enter_async_context(Proxy(dialer(Address(HOST, port))))
            return proxy.port

        group: SentinelGroup | ClusterGroup
        if kind == "sentinel":
            group = SentinelGroup(binary, replicas=replicas, min_replicas=least, front=front)
        else:
            group = ClusterGroup(binary, replicas=replicas, min_replicas=least, front=front)
        await stack.enter_async_context(group)
        yield GroupUnderTest(group, kind, binary.name, namespace, networks, least)
