"""What becomes of the connections: killed, deaf, or both, again and again, while everybody works."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cachebus import Cache, L2Unavailable, Receipt
from cachebus.base.clock import monotonic
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, deaf, nodes, parts, past, quick, until
from tests.support.history import JudgedWorkload, Mix, replay_of, seeds
from tests.support.way import Way

FILE = "tests/chaos/test_connections.py"
WRITES: dict[str, Callable[[Cache], Awaitable[Receipt]]] = {
    "key": lambda cache: cache.invalidate("config", "x", tenant_id="acme"),
    "set": lambda cache: cache.set("config", "x", "new", tenant_id="acme"),
    "scope": lambda cache: cache.invalidate_scope("acme", "config"),
    "tag": lambda cache: cache.invalidate_tags(["t"], tenant_id="acme"),
}


@pytest.fixture
async def pair(own_server: EmbeddedServer) -> AsyncIterator[list[Cache]]:
    """Two nodes over a server of their own."""
    async with nodes(own_server.url) as caches:
        yield caches


async def killing(server: EmbeddedServer, kind: str, until_s: float, every_s: float) -> int:
    """Kill all connections of a kind again and again; how many times."""
    times = 0
    while monotonic() < until_s:
        await asyncio.to_thread(server.command, "CLIENT", "KILL", "TYPE", kind)
        times += 1
        await asyncio.sleep(every_s)
    return times


async def test_with_its_subscription_killed_over_and_over_a_node_serves_nothing_older_than_d(
    own_server: EmbeddedServer,
) -> None:
    begun = asyncio.Barrier(len(WRITES) + 1)  # a node that can't subscribe at its start says so, and does not open

    async def scenario(write: str) -> None:
        async with nodes(own_server.url, namespace=write) as (a, b):
            receipt = await a.set("config", "x", "old", tenant_id="acme", tags=["t"])
            assert await b.get("config", "x", tenant_id="acme", after=receipt) == "old"
            await begun.wait()
            await until(lambda: not b.stats().bus_connected)
            await WRITES[write](a)
            await past(monotonic() + D_S)
            assert await b.get("config", "x", tenant_id="acme") == ("new" if write == "set" else None), write
            assert b.stats().l2_errors == 0  # its commands worked all along

    async with asyncio.TaskGroup() as group:
        for write in WRITES:
            group.create_task(scenario(write))
        await begun.wait()
        killer = group.create_task(killing(own_server, "pubsub", monotonic() + D_S + 0.2, 0.001))
    assert killer.result() > 5


async def test_a_subscription_that_dies_is_renewed_and_events_flow_again(
    own_server: EmbeddedServer, pair: list[Cache]
) -> None:
    a, b = pair
    own_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: not a.stats().bus_connected or not b.stats().bus_connected)
    await until(lambda: a.stats().bus_connected and b.stats().bus_connected)
    before = b.stats().bus_lag.count
    await a.set("config", "x", 1, tenant_id="acme")
    await until(lambda: b.stats().bus_lag.count > before)


async def test_every_connection_may_die_at_any_moment_of_a_call(own_server: EmbeddedServer) -> None:
    """Calls end in time, with a value or an error of ours, and nothing is left over."""
    async with nodes(own_server.url, 2) as pair:
        until_s = monotonic() + 1.0
        outcomes: dict[str, int] = {}
        longest_s = 0.0

        async def caller(i: int) -> None:
            nonlocal longest_s
            cache = pair[i % 2]
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: cache.get("config", i, tenant_id="acme", use_memory=False),
                lambda: cache.get_or_load("config", f"l{i}", lambda: i, tenant_id="acme"),
                lambda: cache.get_many("config", range(5), tenant_id="acme"),
                lambda: cache.set("config", i, i, tenant_id="acme"),
                lambda: cache.invalidate("config", i, tenant_id="acme"),
                lambda: cache.increment("hits", tenant_id="acme"),
            ]
            while monotonic() < until_s:
                started_s = monotonic()
                try:
                    await calls[random.randrange(len(calls))]()
                    outcome = "answered"
                except Exception as error:  # noqa: BLE001 (which errors there are is what is asked here)
                    outcome = type(error).__name__
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                longest_s = max(longest_s, monotonic() - started_s)
                await asyncio.sleep(0)

        await asyncio.gather(killing(own_server, "normal", until_s, 0.03), *(caller(i) for i in range(8)))
        assert set(outcomes) <= {"answered", "L2Unavailable", "InvalidationFailed"}, outcomes
        assert outcomes["answered"] > 50
        assert longest_s < 0.5 * 1.25 + 0.5
        await until(lambda: all(c.ready() and c.stats().l2_connected and not c.stats().flights for c in pair))
        await pair[0].set("config", "x", 1, tenant_id="acme")


async def test_a_write_whose_answer_was_lost_is_not_believed_either_way(own_server: EmbeddedServer) -> None:
    """It may have happened: the node drops what it holds, and finds out."""
    async with nodes(own_server.url, 1) as (a,):
        for _ in range(20):
            await a.set("config", "x", "old", tenant_id="acme")
            writing = asyncio.create_task(a.set("config", "x", "new", tenant_id="acme"))
            await asyncio.sleep(0)
            parts(a).store._links.of(0)._transport.abort()  # type: ignore[attr-defined]
            with pytest.raises(L2Unavailable):
                await writing
            await until(lambda: a.stats().l2_connected and a.ready())
            found = await a.get("config", "x", tenant_id="acme")
            assert found == await a.get("config", "x", tenant_id="acme", use_memory=False)


async def test_a_node_whose_connections_all_hang_half_open_serves_nothing_older_than_d(
    own_server: EmbeddedServer,
) -> None:
    """Its bytes are held somewhere, both sockets stay open; the others go on and write."""
    async with AsyncExitStack() as stack:
        (a,) = await stack.enter_async_context(nodes(own_server.url, 1))
        way = await stack.enter_async_context(HoldingWay(own_server.port))
        b = await stack.enter_async_context(Cache(quick(f"redis://127.0.0.1:{way.port}/0", l2_timeout_s=5)))
        receipt = await a.set("config", "x", "old", tenant_id="acme")
        assert await b.get("config", "x", tenant_id="acme", after=receipt) == "old"
        way.hold.set()
        await a.set("config", "x", "new", tenant_id="acme")
        await past(monotonic() + D_S)
        reading = asyncio.create_task(b.get("config", "x", tenant_id="acme"))
        loading = asyncio.create_task(b.get_or_load("config", "x", lambda: "new", tenant_id="acme"))
        await asyncio.sleep(0.05)
        assert not reading.done()
        way.hold.clear()
        assert await reading == "new"
        assert await loading == "new"


class HoldingWay(Way):
    """A way to the server that can hold all bytes back, by `hold`."""

    def __init__(self, to_port: int) -> None:
        super().__init__(to_port)
        self.hold = asyncio.Event()

    async def _before(self, data: bytes, direction: str, kind: list[str]) -> None:
        await until(lambda: not self.hold.is_set())


@pytest.mark.parametrize("seed", seeds(2))
async def test_lives_over_a_real_server_with_connections_killed_at_random(
    own_server: EmbeddedServer, seed: int
) -> None:
    """As in virtual time, with real sockets; the seed gives the same choices, though not the same moments."""
    dice = random.Random(seed)
    async with nodes(
        own_server.url, 3, lease_ms=300, log_max_len=dice.choice((16, 1000)), max_invalidated_scopes=16
    ) as caches:
        workload = JudgedWorkload(monotonic, D_S, Mix(dice))
        until_s = monotonic() + 2.5

        async def fault() -> None:
            while monotonic() < until_s:
                await asyncio.sleep(dice.uniform(0, 0.4))
                kind = dice.choice(("normal", "pubsub", "deaf", "flush", "log", "scripts"))
                if kind == "deaf":
                    with deaf(dice.choice(caches)):
                        await asyncio.sleep(dice.uniform(0, 2 * D_S))
                elif kind in ("normal", "pubsub"):
                    await asyncio.to_thread(own_server.command, "CLIENT", "KILL", "TYPE", kind)
                elif kind == "flush":
                    await asyncio.to_thread(own_server.command, "FLUSHALL")
                elif kind == "log":
                    await asyncio.to_thread(own_server.command, "DEL", "{cachebus:0}:log")
                else:
                    await asyncio.to_thread(own_server.command, "SCRIPT", "FLUSH")

        lives = [workload.read_on(cache, f"node {i}", until_s) for i, cache in enumerate(caches) for _ in range(2)]
        lives += [workload.write_on(caches, until_s) for _ in range(2)]
        await asyncio.gather(*lives, fault())
        await until(lambda: all(cache.ready() and cache.stats().l2_connected for cache in caches))
        await workload.rest(caches)
        workload.verdict(replay_of(FILE, seed))
