"""How soon a lost connection is there again: by pauses of its own, however seldom leases are renewed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from cachebus import Cache
from cachebus.base.backoff import RECONNECT_MAX_S
from cachebus.resp import parse_address
from cachebus.tools.harness.proxy import Proxy, dialer
from cachebus.tools.harness.stream import Kind
from cachebus.tools.servers.redis import HOST, EmbeddedServer
from tests.support.caches import asked, nodes, parts, quick, until

SELDOM: dict[str, Any] = {"staleness_bound_s": 600.0, "probe_interval_s": 300.0}
WHERE = {"tenant_id": "acme"}


async def test_both_connections_come_back_though_leases_are_renewed_seldom(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, **SELDOM) as (a,):
        await a.set("config", "x", 1, **WHERE)
        for kind in ("normal", "pubsub"):
            before = a.stats().reconnects
            await asyncio.to_thread(own_server.command, "CLIENT", "KILL", "TYPE", kind)
            await until(lambda before=before: a.stats().reconnects > before)
            await until(lambda: a.stats().l2_connected and a.stats().bus_connected)
        await a.set("config", "x", 2, **WHERE)
        assert await a.get("config", "x", **WHERE, use_memory=False) == 2


async def test_what_went_by_while_nobody_listened_is_looked_for_as_soon_as_somebody_does(
    own_server: EmbeddedServer,
) -> None:
    async with nodes(own_server.url, 2, **SELDOM) as (a, b):
        await b.set("config", "x", "old", **WHERE)
        bus, listen = parts(b).bus, parts(b).bus.listen

        async def listen_late(shard: int) -> None:
            await a.set("config", "x", "new", **WHERE)
            bus.listen = listen  # type: ignore[method-assign]
            await listen(shard)

        bus.listen = listen_late  # type: ignore[method-assign]
        await asyncio.to_thread(own_server.command, "CLIENT", "KILL", "TYPE", "pubsub")

        async def is_heard() -> bool:
            return await b.get("config", "x", **WHERE) == "new"

        await until(is_heard)


async def test_a_shard_that_could_not_be_tended_is_tended_as_soon_as_the_server_is_there_again(
    own_server: EmbeddedServer,
) -> None:
    """1. the server goes; 2. a probe fails, and rests for minutes; 3. the server comes back; 4. it is probed."""
    async with Cache(quick(own_server.url, **SELDOM)) as a:
        await a.set("config", "x", 1, **WHERE)
        own_server.kill()
        await until(lambda: not a.stats().l2_connected)
        with asked(a) as counts:
            parts(a).listening.attention.prompt(0)
            for _ in range(10):
                await asyncio.sleep(0)
            before = counts["probe"]
            own_server.start()
            await until(lambda: a.stats().l2_connected)
            await until(lambda: counts["probe"] > before)
        await a.set("config", "x", 2, **WHERE)


async def test_a_server_that_lets_us_in_and_refuses_every_probe_is_not_stormed(own_server: EmbeddedServer) -> None:
    """The connection stays, since the server answers; the pauses between its probes grow."""
    async with nodes(own_server.url, 1) as (a,):
        assert own_server.command("CONFIG", "SET", "min-replicas-to-write", "1") == "+OK"
        pauses = parts(a).listening.tending._pauses_of(0)
        await until(lambda: pauses._now_s > 0.5)  # they grow, success at connecting or not
        assert own_server.command("CONFIG", "SET", "min-replicas-to-write", "0") == "+OK"
        await until(lambda: a.ready() and a.stats().l2_connected and pauses._now_s < 0.1)
        assert a.stats().reconnects == 0


async def test_a_server_that_lets_us_in_and_throws_us_out_again_is_not_stormed(own_server: EmbeddedServer) -> None:
    """Each time the node is let in, and has done there what it came for: commands, or a subscription."""
    async with (
        Proxy(dialer(parse_address(own_server.url))) as proxy,
        nodes(f"redis://{HOST}:{proxy.port}/0", 1) as (a,),
    ):
        store, bus = cast("Any", parts(a).store), cast("Any", parts(a).bus)
        kinds: dict[Kind, Any] = {"data": store._links, "events": bus._links}
        for kind, links in kinds.items():
            (primary,) = links._primaries.values()
            for _ in range(20):
                await until(lambda primary=primary: primary.attempts.made)
                proxy.reset([kind])
                await until(lambda primary=primary: not primary.attempts.made)
                if primary.attempts.wait_s > RECONNECT_MAX_S / 4:
                    break
            else:
                raise AssertionError(f"{kind}: it comes back at the pace of the first pause, for ever")
        await until(lambda: a.ready() and a.stats().bus_connected)
