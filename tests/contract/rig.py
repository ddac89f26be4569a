"""What the contract suites need of a store beside its protocol: to damage it, to look inside, to hear what it sends."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.core.ports import NodeRow, Store
from cachebus.keys.key import Key
from cachebus.l2.layout import Layout
from cachebus.l2.memory import MemoryShard
from cachebus.l2.memory_store import MemoryShards, MemoryStore
from cachebus.l2.names import ShardNames
from cachebus.l2.redis import RedisStore
from cachebus.l2.replies import NAME, node_row
from cachebus.resp import Address, ClusterMap, Connection, Fixed, Route, Subscriber, parse_address
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from tests.support import shard_state

PATIENCE_S = 10.0
POLL_S = 0.004
NAMESPACE = "contract"
SHARDS = 2
"""The suites play in shard 0; the second is there to be left alone."""


async def until(met: Callable[[], Awaitable[object]]) -> object:
    """What `met` gives once it is true; a test that waits for time to pass waits here, and no longer than it takes."""
    deadline_s = monotonic() + PATIENCE_S
    while True:
        found = await met()
        if found:
            return found
        assert monotonic() < deadline_s, "waited in vain"
        await asyncio.sleep(POLL_S)


def aged(row: bytes, by_s: int) -> bytes:
    """A node's row as it lies in L2, written so much earlier."""
    at = row.index(b"\xa5at_us\xcf") + 7
    at_us = int.from_bytes(row[at : at + 8], "big") - by_s * 1_000_000
    return row[:at] + at_us.to_bytes(8, "big") + row[at + 8 :]


class StoreRig(ABC):
    """A store's data, and as many stores over it as there are nodes."""

    def __init__(self, max_invalidated_scopes: int, log_max: int, log_max_bytes: int = 1 << 26) -> None:
        self.max_invalidated_scopes, self.log_max, self.log_max_bytes = max_invalidated_scopes, log_max, log_max_bytes
        self.messages: list[bytes] = []
        """What shard 0 has published, in order of arrival."""
        self.stores: list[Store] = []

    @abstractmethod
    async def begin(self) -> None:
        """Listen to the channel of shard 0."""

    async def store(self) -> Store:
        """One more node's store, connected."""
        store = self.unconnected()
        self.stores.append(store)
        await store.connect()
        return store

    async def end(self) -> None:
        """Close whatever was opened."""
        for store in self.stores:
            await store.close()

    async def heard(self, count: int) -> list[bytes]:
        """The messages, once so many have arrived."""

        async def enough() -> bool:
            return len(self.messages) >= count

        await until(enough)
        return self.messages

    @abstractmethod
    def unconnected(self) -> Store:
        """A store over this data that nobody has connected."""

    @abstractmethod
    async def flush(self) -> None:
        """All data is gone, as after FLUSHALL."""

    @abstractmethod
    async def lose_meta(self) -> None:
        """The hash of shard 0 is gone, as by eviction; all else is there."""

    @abstractmethod
    async def lose_marks(self, bucket: str = "") -> None:
        """The marks of shard 0 are gone, as by eviction, of one bucket or of all; all else is there."""

    @abstractmethod
    async def lose_buckets(self) -> None:
        """What shard 0 knows of its buckets of marks is gone, as by eviction; the marks are there."""

    @abstractmethod
    async def lose_guards(self) -> None:
        """The guards of shard 0 are gone, as by eviction; all else is there."""

    @abstractmethod
    async def lose_nodes(self) -> None:
        """The rows of shard 0's nodes are gone, as by eviction; all else is there."""

    @abstractmethod
    async def silence(self, node: str) -> None:
        """Make the node's row in shard 0 look two minutes old."""

    @abstractmethod
    async def another_server(self) -> None:
        """The data is found on another server than it was written on, as after a failover."""

    @abstractmethod
    async def plant(self, key: Key, data: bytes) -> None:
        """Put bytes where the key's record lies."""

    @abstractmethod
    async def plant_nonsense(self, key: Key) -> None:
        """Put something that is no string of bytes, where the store can hold such a thing."""

    @abstractmethod
    async def leased(self, key: Key) -> bool:
        """Whether there is a lease on the key."""

    @abstractmethod
    async def rows(self) -> dict[str, NodeRow]:
        """The rows of shard 0's nodes."""

    async def applied(self) -> dict[str, int]:
        """How far each node with a row in shard 0 is."""
        return {node: row.applied for node, row in (await self.rows()).items()}


class MemoryRig(StoreRig):
    """The twin."""

    async def begin(self) -> None:
        limits = {
            "max_invalidated_scopes": self.max_invalidated_scopes,
            "log_max": self.log_max,
            "log_max_bytes": self.log_max_bytes,
        }
        self.shards = [MemoryShard(monotonic, **limits) for _ in range(SHARDS)]
        self.shard = self.shards[0]
        self.shard.publish = self.messages.append
        self.shard.is_new = False  # a server never knows that it is

    def unconnected(self) -> Store:
        return MemoryStore(MemoryShards(self.shards))

    async def flush(self) -> None:
        for shard in self.shards:
            shard.wipe()

    async def lose_meta(self) -> None:
        shard_state.lose_meta(self.shard)

    async def lose_marks(self, bucket: str = "") -> None:
        self.shard.invalidated.lose(bucket)

    async def lose_buckets(self) -> None:
        self.shard.invalidated.lose_counts()

    async def lose_guards(self) -> None:
        self.shard.guards = {}

    async def lose_nodes(self) -> None:
        shard_state.lose_nodes(self.shard)

    async def silence(self, node: str) -> None:
        row = self.shard.rows[node]
        self.shard.rows[node] = row._replace(at_us=row.at_us - 120_000_000)

    async def another_server(self) -> None:
        self.shard.server += "'"

    async def plant(self, key: Key, data: bytes) -> None:
        self.shard.records[key.l2] = (data, float("inf"))

    async def plant_nonsense(self, key: Key) -> None:
        await self.plant(key, b"\x00")

    async def leased(self, key: Key) -> bool:
        return key.l2 in self.shard.fill_leases and self.shard.fill_leases[key.l2].until_s > self.shard.clock()

    async def rows(self) -> dict[str, NodeRow]:
        return dict(self.shard.rows)


class RedisRig(StoreRig):
    """A real server."""

    names = ShardNames(NAMESPACE, 0)

    def __init__(self, url: str, max_invalidated_scopes: int, log_max: int, log_max_bytes: int = 1 << 26) -> None:
        super().__init__(max_invalidated_scopes, log_max, log_max_bytes)
        self.address: Address = parse_address(url)
        self.redis: Connection
        """For commands of the test's own."""
        self.server: EmbeddedServer
        """Where it is the test's own."""

    async def begin(self) -> None:
        self.redis = await Connection.open(self.address, Patience(PATIENCE_S, PATIENCE_S, monotonic))
        self._ears = await Subscriber.open(
            self.address,
            Patience(PATIENCE_S, PATIENCE_S, monotonic),
            on_push=lambda _, message: self.messages.append(message),
        )
        await self._ears.subscribe(self.names.channel)

    def unconnected(self) -> Store:
        return self.of_facts(SHARDS, "redis")

    def route(self, shards: int) -> Route:
        """The way there."""
        return Fixed(self.address, shards)

    def of_facts(self, shards: int, bus: str) -> RedisStore:
        """A store of a node with this set-up, not connected."""
        return RedisStore(
            self.route(shards),
            Layout(NAMESPACE, shards, bus, self.max_invalidated_scopes, self.log_max, self.log_max_bytes),
            Patience(PATIENCE_S, PATIENCE_S, monotonic),
        )

    async def end(self) -> None:
        await super().end()
        self.redis.close()
        self._ears.close()

    async def flush(self) -> None:
        await self.redis.call("FLUSHALL")

    async def lose_meta(self) -> None:
        await self.redis.call("DEL", self.names.meta)

    async def lose_marks(self, bucket: str = "") -> None:
        await self.redis.call("DEL", *([self.names.marks(bucket)] if bucket else self.names.all_marks))

    async def lose_buckets(self) -> None:
        await self.redis.call("DEL", self.names.buckets)

    async def lose_guards(self) -> None:
        await self.redis.call("DEL", self.names.guards)

    async def lose_nodes(self) -> None:
        await self.redis.call("DEL", self.names.nodes)

    async def silence(self, node: str) -> None:
        row = await self.redis.call("HGET", self.names.nodes, node)
        await self.redis.call("HSET", self.names.nodes, node, aged(row, 120))

    async def another_server(self) -> None:
        await self.redis.call("HSET", self.names.meta, "server", "another")

    async def plant(self, key: Key, data: bytes) -> None:
        await self.redis.call("SET", self.names.record(key), data)

    async def plant_nonsense(self, key: Key) -> None:
        await self.redis.call("DEL", self.names.record(key))
        await self.redis.call("RPUSH", self.names.record(key), "a list")

    async def leased(self, key: Key) -> bool:
        return bool(await self.redis.call("EXISTS", self.names.fill_lease(key)))

    async def rows(self) -> dict[str, NodeRow]:
        flat = await self.redis.call("HGETALL", self.names.nodes)
        found = zip(flat[::2], flat[1::2], strict=True)
        return {node.decode(): node_row(row) for node, row in found if node != NAME}


class ClusterRig(RedisRig):
    """A Cluster; what the suites do to the server, they do to the one that has shard 0."""

    def __init__(
        self, group: ClusterGroup, max_invalidated_scopes: int, log_max: int, log_max_bytes: int = 1 << 26
    ) -> None:
        super().__init__(group.servers[0].url, max_invalidated_scopes, log_max, log_max_bytes)
        self.group = group

    async def begin(self) -> None:
        self.server = await self.group.primary_of(self.names.log)
        self.address = parse_address(self.server.url)
        await super().begin()
        if (await self.redis.call("COMMAND", "INFO", "SPUBLISH"))[0]:
            await self._ears.subscribe(self.names.channel, sharded=True)

    def route(self, shards: int) -> Route:
        seeds = [parse_address(server.url) for server in self.group.servers]
        logs = [ShardNames(NAMESPACE, shard).log for shard in range(shards)]
        return ClusterMap(seeds, logs, connect_timeout_s=PATIENCE_S, clock=monotonic)

    async def flush(self) -> None:
        for server in self.group.servers:
            if (await ask(server, "ROLE"))[0] == b"master":
                await ask(server, "FLUSHALL")
