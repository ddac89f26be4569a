"""A worker and several primaries: what one of them does holds up nobody else's items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cachebus.base.clock import monotonic
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.at_work import at_work, invalidation
from tests.support.caches import until
from tests.support.memory_source import MemorySource
from tests.support.primaries import SHARDS, Town
from tests.support.servers import any_binary


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """Three primaries, of which tests break some."""
    async with Town(any_binary(), replicas=0) as town:
        yield town


async def through(source: MemorySource, tenants: list[str], name: str) -> float:
    """How long it takes until commands for these have been let go of, in seconds."""
    began_s = monotonic()
    source.put(*[invalidation(name, tenant_id=tenant) for tenant in tenants])
    last = max(source.rows)
    numbers = range(last - len(tenants) + 1, last + 1)
    await until(lambda: not source.rows.keys() & set(numbers))
    return monotonic() - began_s


@pytest.mark.parametrize("waiting", [1, 20_000])
@pytest.mark.parametrize("fault", ["dead", "frozen", "writes paused"])
async def test_one_that_is_away_holds_up_nobody_else(town: Town, fault: str, waiting: int) -> None:
    first, *others = town.tenants
    server = town.servers[0]
    source = MemorySource()
    async with at_work(source, town.url, shards=SHARDS) as worker:
        await through(source, town.tenants, "y")
        if fault == "dead":
            server.kill()
        elif fault == "frozen":
            server.pause()
        else:
            server.command("CLIENT", "PAUSE", "600000", "WRITE")
        source.put(*[invalidation(number, tenant_id=first) for number in range(waiting)])
        took_s = [await through(source, others, f"n{number}") for number in range(40)]
        print(f"{fault}, {waiting} waiting: {max(took_s):.3f} s at most, then {sorted(took_s)[20]:.4f}")
        assert len(source.rows) == waiting
        assert len(source.held) == waiting
        assert worker.health.ready, "all else goes on"
        assert "a part is out of reach" in worker.health.as_dict()["parts"]["l2"]["why"]
        assert len(source.taken) < 40 * 4 + 2 * waiting / source.limit + 20, "what waits is not taken again and again"
        if fault == "dead":
            server.start()
        elif fault == "frozen":
            server.resume()
        else:
            server.command("CLIENT", "UNPAUSE")
        await until(lambda: not source.rows, within_s=60)
        await until(lambda: worker.health.as_dict()["parts"]["l2"]["why"] == "")


async def test_after_an_outage_of_all_those_that_are_back_wait_for_no_other(town: Town) -> None:
    source = MemorySource()
    async with at_work(source, town.url, shards=SHARDS) as worker:
        await through(source, town.tenants, "y")
        for server in town.servers:
            server.kill()
        source.put(*[invalidation("x", tenant_id=tenant) for tenant in town.tenants])
        await until(lambda: not worker.health.ready)
        for server in town.servers[1:]:
            server.start()
        await through(source, town.tenants[1:], "z")
        await until(lambda: len(source.rows) == 1)
        await until(lambda: worker.health.ready)
        town.servers[0].start()
        await until(lambda: not source.rows)


async def test_a_primary_that_refuses_is_waited_for_where_there_is_no_other(own_server: EmbeddedServer) -> None:
    """It is connected, and may answer probes: that is no reason to be ready."""
    source = MemorySource()
    async with at_work(source, own_server.url) as worker:
        await through(source, ["acme"], "y")
        own_server.command("CONFIG", "SET", "min-replicas-to-write", "1")
        source.put(invalidation("x"))
        await until(lambda: not worker.health.ready)
        for _ in range(200):
            await asyncio.sleep(0.01)  # some looks at L2 long
            assert not worker.health.ready
        assert "NOREPLICAS" in worker.health.as_dict()["parts"]["l2"]["why"]
        assert not source.held
        own_server.command("CONFIG", "SET", "min-replicas-to-write", "0")
        await until(lambda: not source.rows)
        await until(lambda: worker.health.ready)
