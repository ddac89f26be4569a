"""Three primaries of a Cluster, and tenants of each."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cachebus import Cache
from cachebus.keys.key import Keyspace
from cachebus.l2.names import ShardNames
from cachebus.tools.servers.redis_cluster import ClusterGroup
from tests.support.caches import heard

SHARDS = 32


class Town(ClusterGroup):
    """Three primaries without replicas, and a tenant for each."""

    tenants: list[str]
    """That of the first, the second and the third."""
    sibling: str
    """Another one of the second, in another slot."""

    async def start(self) -> None:
        """Find the tenants."""
        await super().start()
        found: dict[int, list[str]] = {}
        seen = set()
        for tenant in (f"t{i}" for i in range(1000)):
            names = names_of(tenant)
            if names.log not in seen:
                seen.add(names.log)
                found.setdefault((await self.primary_of(names.log)).port, []).append(tenant)
            if len(found) == 3 and all(len(of) > 1 for of in found.values()):
                break
        self.tenants = [found[server.port][0] for server in self.servers]
        self.sibling = found[self.servers[1].port][1]


def names_of(tenant: str) -> ShardNames:
    """The names of a tenant's shard."""
    return ShardNames("cachebus", Keyspace(SHARDS).key("config", "x", tenant).shard)


async def all_is_well(cache: Cache, other: Cache, tenant: str) -> None:
    """All that a cache does for a tenant: none of it fails."""
    where: dict[str, Any] = {"tenant_id": tenant}
    await cache.set("config", "x", 1, **where)
    assert await other.get("config", "x", **where) == 1
    receipt = await cache.invalidate("config", "x", wait="nodes", **where)
    assert receipt.status == "applied"
    await heard([other], receipt)
    assert await other.get("config", "x", **where) is None
    assert await cache.get_or_load("config", "x", lambda: 2, **where) == 2
    assert await other.get("config", "x", use_memory=False, **where) == 2
    assert await cache.increment("n", **where) > 0
    async with cache.write_guard([("config", "x")], tenant, db_timeout_s=0.5):
        assert not (await cache.set("config", "x", 3, **where)).stored


@contextmanager
def no_answer(port: int) -> Iterator[None]:
    """In the place of a server a host that is gone: whoever connects hears nothing."""
    with socket.socket() as hole:
        hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hole.bind(("127.0.0.1", port))
        hole.listen(0)
        fills = []
        for _ in range(3):
            fill = socket.socket()
            fill.setblocking(False)
            fill.connect_ex(("127.0.0.1", port))
            fills.append(fill)
        try:
            yield
        finally:
            for fill in fills:
                fill.close()
