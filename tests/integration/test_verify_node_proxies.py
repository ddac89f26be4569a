"""A node of `cachebus verify` goes to each server of a group by the proxy before it: else a fault strikes nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cachebus import Cache
from cachebus.resp import Address
from cachebus.tools.harness.proxy import HOST, dialer
from cachebus.tools.servers.redis import EmbeddedServer, free_port
from cachebus.tools.verify.target.node_proxies import NodeProxies, redirect
from tests.support.caches import nodes, until
from tests.support.servers import any_binary

TENANT, TIMEOUT_S = "acme", 5.0


async def test_all_of_a_caches_connections_go_by_the_proxies(tmp_path: Path) -> None:
    """Whoever asked for the server itself would find nobody: it listens on a path."""
    path = str(tmp_path / "server.sock")
    with EmbeddedServer(any_binary(), extra=("--unixsocket", path)):
        port = free_port()
        async with NodeProxies({port: dialer(Address(path=path))}) as proxies:
            redirect(asyncio.get_running_loop(), proxies.ports)
            async with nodes(f"redis://{HOST}:{port}/0", 1, l2_timeout_s=TIMEOUT_S) as (cache,):
                await cache.set("config", "x", 1, tenant_id=TENANT)
                assert await cache.get("config", "x", tenant_id=TENANT, use_memory=False) == 1
                await until(cache.ready)
                proxies.cut()
                await until(lambda: not connected(cache))
                proxies.restore()
                await until(lambda: connected(cache))


def connected(cache: Cache) -> bool:
    """Whether it has its connection for commands."""
    return cache.stats().l2_connected
