"""Primaries that answer, and take nothing: a worker, or a producer, is not well while all of them do so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from cachebus import InvalidationFailed
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.monitoring.meters import Meters
from cachebus.consumers.worker.apply import Applier
from cachebus.consumers.worker.preflight import preflight
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.errors import L2Unavailable
from cachebus.keys.plan import Plan
from cachebus.l2.names import ShardNames
from cachebus.producers.direct import DirectProducer
from cachebus.producers.refusals import CALLED_S, Refusals
from cachebus.resp import slot_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import quick, until
from tests.support.memory_source import MemorySource
from tests.support.outbox import invalidation
from tests.support.primaries import SHARDS, Town
from tests.support.refusing import REFUSALS, Refusing
from tests.support.servers import any_binary

LACKS_REPLICAS = ("CONFIG", "SET", "min-replicas-to-write", "1")
NEEDS_NONE = ("CONFIG", "SET", "min-replicas-to-write", "0")


class Watched:
    """What a worker has to do with L2, and how it says that this is."""

    def __init__(self, url: str, shards: int = 1) -> None:
        self.health = WorkerHealth("test", ("l2",))
        self.applier = Applier(quick(url, shards=shards), self.health, Meters(self.health))

    @property
    def why(self) -> str:
        """What it says of L2."""
        return str(self.health.as_dict()["parts"]["l2"]["why"])

    def plan(self, tenant: str = "acme") -> Plan:
        """Some invalidation of the tenant."""
        return self.applier.plan_of(invalidation("1", tenant_id=tenant))


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """Three primaries."""
    async with Town(any_binary(), replicas=0) as town:
        yield town


@pytest.mark.parametrize("how", ["NOREPLICAS", "READONLY", "BUSY"])
async def test_one_that_has_nothing_to_do_is_not_ready_while_its_only_primary_refuses(
    own_server: EmbeddedServer, how: str
) -> None:
    one = Watched(own_server.url)
    async with one.applier.opened():
        assert one.health.ready
        refusing = Refusing(own_server, how)
        await refusing.begin()
        await until(lambda: not one.health.ready)
        if how != "BUSY":  # which may be no answer in time
            assert how in one.why
        await refusing.end()
        await until(lambda: one.health.ready)
        assert not one.why


async def test_one_that_cant_save_to_disk_is_no_place_to_write(own_server: EmbeddedServer) -> None:
    one = Watched(own_server.url)
    async with one.applier.opened():
        (own_server.directory / "dump.rdb").mkdir()
        own_server.command("CONFIG", "SET", "save", "3600 1")
        own_server.command("BGSAVE")
        await until(lambda: not one.health.ready)
        assert "MISCONF" in one.why
        own_server.command("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        await until(lambda: one.health.ready)


async def test_one_that_starts_while_its_primary_refuses_is_not_ready(own_server: EmbeddedServer) -> None:
    async with DirectProducer.open(quick(own_server.url)):
        pass
    own_server.command(*LACKS_REPLICAS)
    one = Watched(own_server.url)
    async with one.applier.opened():
        assert not one.health.ready
        assert "NOREPLICAS" in one.why
        own_server.command(*NEEDS_NONE)
        await until(lambda: one.health.ready)


async def test_one_whose_server_is_full_is_not_ready_for_as_long_as_that_refuses_what_waits(
    own_server: EmbeddedServer,
) -> None:
    one = Watched(own_server.url)
    async with one.applier.opened():
        own_server.command(*REFUSALS["OOM"][0])
        plan = one.applier.plan_of('{"op": "scope", "tenant_id": "acme", "data_type": "config"}')
        applying = asyncio.create_task(one.applier.apply([plan]))
        await until(lambda: not one.health.ready)
        for _ in range(25):  # a look meanwhile, which is taken, changes nothing
            await asyncio.sleep(0.1)
            assert not one.health.ready
        assert "OOM" in one.why
        own_server.command(*REFUSALS["OOM"][1])
        await asyncio.wait_for(applying, 15)
        assert one.health.ready


async def test_it_is_looked_at_before_a_worker_is_started(own_server: EmbeddedServer) -> None:
    own_server.command(*LACKS_REPLICAS)
    (l2, *_) = await preflight(SourceWorker("memory", MemorySource(), quick(own_server.url)))
    assert "NOREPLICAS" in l2.findings[0].problem


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with something to do"])
async def test_of_several_all_refuse_or_one_does(town: Town, busy: bool) -> None:
    first, second, third = town.servers
    one = Watched(town.url, SHARDS)
    async with one.applier.opened(), AsyncExitStack() as stack:
        if busy:
            await one.applier.apply([one.plan(tenant) for tenant in town.tenants])
        await until(lambda: one.health.ready and not one.why)
        await ask(second, *LACKS_REPLICAS)
        applying = [asyncio.create_task(one.applier.apply([one.plan(t)])) for t in town.tenants if busy]
        for task in applying:
            stack.callback(task.cancel)
        await until(lambda: "NOREPLICAS" in one.why)
        assert one.health.ready
        await until(lambda: f":{second.port}:" in one.why)
        assert not any(f":{other.port}" in one.why for other in (first, third))
        for server in (first, third):
            await ask(server, *LACKS_REPLICAS)
        applying += [asyncio.create_task(one.applier.apply([one.plan(t)])) for t in town.tenants if busy]
        await until(lambda: not one.health.ready)
        await until(lambda: "NOREPLICAS" in one.why)
        for _ in range(30):
            await asyncio.sleep(0.1)
            assert not one.health.ready, "it stays so while all of them refuse"
        await ask(third, *NEEDS_NONE)
        await until(lambda: one.health.ready)
        await until(lambda: all(f":{server.port}:" in one.why for server in (first, second)))
        assert f":{third.port}" not in one.why
        for server in (first, second):
            await ask(server, *NEEDS_NONE)
        await asyncio.wait_for(asyncio.gather(*applying), 20)
        await until(lambda: one.health.ready and not one.why)


def moving(town: Town) -> int:
    """The slot of the only shard."""
    return slot_of(ShardNames("cachebus", 0).meta)


async def test_who_is_told_by_all_that_the_slots_lie_elsewhere_says_so(town: Town) -> None:
    home = await town.primary_of(ShardNames("cachebus", 0).meta)
    other = next(server for server in town.servers if server is not home)
    with pytest.raises(L2Unavailable, match=r"the slots lie elsewhere \(MOVED .*redis\+cluster://"):
        async with DirectProducer.open(quick(f"redis://127.0.0.1:{other.port}", connect_timeout_s=2)):
            pass
    wrong, right = Watched(f"redis://127.0.0.1:{other.port}"), Watched(f"redis://127.0.0.1:{home.port}")

    async def begin() -> None:
        async with wrong.applier.opened():
            await asyncio.Event().wait()

    begun = asyncio.create_task(begin())
    try:
        await until(lambda: "the slots lie elsewhere" in wrong.why)
        assert not wrong.health.ready
    finally:
        begun.cancel()
        await asyncio.wait([begun])
    async with right.applier.opened(), DirectProducer.open(quick(f"redis://127.0.0.1:{home.port}")) as producer:
        assert right.health.ready
        await producer.invalidate("config", "1", "acme")
        await town.move_slot(moving(town), home, other)
        await until(lambda: not right.health.ready)
        assert "the slots lie elsewhere" in right.why
        with pytest.raises(InvalidationFailed, match="the slots lie elsewhere"):
            await producer.invalidate("config", "1", "acme")
        await town.move_slot(moving(town), other, home)
        await until(lambda: right.health.ready)
        await producer.invalidate("config", "1", "acme")


def test_what_a_full_server_refuses_is_refused_until_a_call_is_taken_or_nobody_calls() -> None:
    now_s = [0.0]
    refusals = Refusals(lambda: now_s[0])
    refusals.refused({"a"}, L2Unavailable("OOM command not allowed"))
    refusals.took("a", looked=True)
    assert "a" in refusals, "a look makes no mark"
    now_s[0] = CALLED_S
    refusals.took("a", looked=True)
    assert "a" not in refusals
    refusals.refused({"a", "b"}, L2Unavailable("OOM command not allowed"))
    refusals.took("a")
    assert "a" not in refusals
    refusals.refused({"b"}, L2Unavailable("no answer"), looked=True)
    refusals.took("b", looked=True)
    assert "b" in refusals
    refusals.only({"a"})
    assert "b" not in refusals
    refusals.refused({"c"}, L2Unavailable("NOREPLICAS"))
    refusals.took("c", looked=True)
    assert "c" not in refusals
