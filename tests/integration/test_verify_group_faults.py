"""The faults of groups bring about what they say, on real Sentinels and a real Cluster; and what is promised holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import L2Unavailable
from cachebus.resp import Address, Connection, parse_address
from cachebus.settings import CLUSTER_SHARDS
from cachebus.tools.harness.proxy import HOST
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup
from cachebus.tools.verify.fleet.messages import VerifyJob
from cachebus.tools.verify.fleet.processes import FleetUnderTest
from cachebus.tools.verify.nemesis.faults import FAULTS, chosen
from cachebus.tools.verify.plan import make_plan
from cachebus.tools.verify.run import Run
from cachebus.tools.verify.target import testbed as target
from cachebus.tools.verify.target.group import GroupUnderTest, Kind, grouped
from cachebus.tools.verify.target.group_watch import GroupWatch
from cachebus.tools.verify.target.node_proxies import NodeProxies, NodeProxy
from cachebus.tools.verify.target.testbed import InjectedFault, Occurrence, inject
from tests.support.caches import until
from tests.support.servers import any_binary

NODES = (1, 2)
BOUND_S, LASTS_S, ASK_S = 1.0, 2.0, 0.5
KINDS: list[Kind] = ["sentinel", "cluster"]
ALL = "primary-frozen,failover-unseen,failover-newcomer,split"


@asynccontextmanager
async def staged(kind: Kind) -> AsyncIterator[tuple[target.Testbed, GroupUnderTest]]:
    """A testbed with ways for two nodes, and no node. The primaries have two replicas, or one in a Cluster."""
    async with grouped(kind, any_binary(), "verify", seed=2) as server, FleetUnderTest(no_job, 0) as fleet:
        assert server.group is not None
        proxies: dict[int, NodeProxy] = {}
        async with NodeProxies(server.dials) as one, NodeProxies(server.dials) as other:
            proxies |= zip(NODES, (one, other), strict=True)
            yield target.Testbed(BOUND_S, server, proxies, fleet), server.group


def no_job(node: int, life: int) -> VerifyJob:
    """There are no nodes."""
    raise AssertionError((node, life))


def occurrence(name: str, seed: int = 1) -> Occurrence:
    """One occurrence of this fault."""
    return Occurrence(0.0, FAULTS[name], 0, LASTS_S, seed)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_promise_is_kept_through_them(kind: Kind) -> None:
    any_binary()
    faults = chosen(ALL)
    plan = make_plan(
        url=None, seconds=25.0, seed=4, faults=faults, nodes=3, bound_s=0.5, rate=300, write_rate=20, kind=kind
    )
    verdict = await Run(plan).verdict()
    verdict.raise_for_broken()
    assert len(verdict.faults) >= 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_frozen_primary_wakes_beside_another_and_has_not_heard_that_its_replicas_left(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(kind) as (testbed, group):
        names = group.some_shard(occurrence("primary-frozen").dice())
        primary = await group.primary(names)
        assert primary is not None
        replicas = len(await group.replicas(primary))
        connection = await Connection.open(parse_address(primary.url), Patience(60.0, 60.0, monotonic))
        frozen, pause = asyncio.Event(), primary.pause

        def paused() -> None:
            pause()
            frozen.set()

        monkeypatch.setattr(primary, "pause", paused)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(inject(testbed, occurrence("primary-frozen")))
            await frozen.wait()
            answer = connection.call("INFO", "replication")  # the first thing that it does when it wakes
            await group.promoted(names, primary)
            first = await answer
            assert b"role:master" in first
            assert first.count(b"state=online") == replicas
        connection.close()
        heir = await group.primary(names)
        assert heir not in (None, primary)


async def test_some_nodes_hear_nothing_of_a_failover() -> None:
    async with staged("sentinel") as (testbed, group):
        names = group.some_shard(occurrence("failover-unseen").dice())
        primary = await group.primary(names)
        assert primary is not None
        assert not await deaf(testbed, group)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(inject(testbed, occurrence("failover-unseen")))
            await group.promoted(names, primary)
            assert await deaf(testbed, group)
        assert not await deaf(testbed, group)


async def deaf(testbed: target.Testbed, group: GroupUnderTest) -> set[tuple[int, int]]:
    """Which nodes hear nothing from which Sentinels."""
    ways = {
        (node, number): road.ports[sentinel.port]
        for node, road in testbed.proxies.items()
        if isinstance(road, NodeProxies)
        for number, sentinel in enumerate(group.sentinels)
    }
    heard = await asyncio.gather(*map(answers, ways.values()))
    return {way for way, hears in zip(ways, heard, strict=True) if not hears}


async def answers(port: int) -> bool:
    """Whether anybody does at this port."""
    there = Address(HOST, port)
    try:
        connection = await Connection.open(there, Patience(ASK_S, ASK_S, monotonic))
    except L2Unavailable:
        return False
    connection.close()
    return True


@pytest.mark.parametrize("kind", KINDS)
async def test_a_new_replica_takes_the_place_of_one_while_the_primary_dies(kind: Kind) -> None:
    async with staged(kind) as (testbed, group):
        names = group.some_shard(occurrence("failover-newcomer").dice())
        before, primary = list(group.data), await group.primary(names)
        assert primary is not None
        await inject(testbed, occurrence("failover-newcomer"))
        (gone,) = set(before) - set(group.data)
        (fresh,) = set(group.data) - set(before)
        assert not gone.running
        heir = await group.primary(names, but=primary)
        assert heir is not None
        if heir is not fresh:
            await until(lambda: follows(group, fresh, heir))


async def follows(group: GroupUnderTest, server: EmbeddedServer, primary: EmbeddedServer) -> bool:
    """Whether one has copied all from another, and follows it."""
    role = await ask(server, "ROLE")
    return role[:4] == [b"slave", HOST.encode(), group.place(primary), b"connected"]


async def test_what_is_set_right_is_not_the_one_that_was_deposed() -> None:
    async with SentinelGroup(any_binary()) as group:
        old = await group.primary()
        await ask(group.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
        heir = await until(lambda: other_than(group, old))
        await until(lambda: role_of(old, b"slave"))
        await ask(old, "REPLICAOF", "NO", "ONE")
        await group.set_right()
        await group.until_replicas(2)
        assert await group.primary() is heir


async def other_than(group: SentinelGroup, old: EmbeddedServer) -> EmbeddedServer | None:
    """The primary, if it is another one."""
    now = await group.primary()
    return None if now is old else now


async def role_of(server: EmbeddedServer, role: bytes) -> bool:
    """Whether a server says that it is this."""
    return (await ask(server, "ROLE"))[0] == role


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_group_does_by_itself_is_seen_and_told_apart_from_what_faults_do(kind: Kind) -> None:
    async with staged(kind) as (testbed, group), GroupWatch(group) as watch:

        def told_of(shards: frozenset[int]) -> list[InjectedFault]:
            return [seen for seen in watch.unprovoked(testbed.done) if seen.shards and shards <= seen.shards]

        names = group.some_shard(occurrence("handover").dice())
        primary = await group.primary(names)
        assert primary is not None
        others = frozenset(range(CLUSTER_SHARDS)) - await group.shards_at(primary)
        await until(lambda: sum(known.standing is not None for known in watch._known.values()) == len(group.data))
        await until(lambda: all(known.shards is None for known in watch._known.values()))  # all is well by now
        before = len(watch.amiss)

        await inject(testbed, occurrence("handover"))
        await until(lambda: len(watch.amiss) > before)
        assert not watch.unprovoked([*testbed.done, *watch.amiss[:before]])
        assert all(seen.shards is not None and not seen.shards & others for seen in watch.amiss[before:])

        primary = await group.primary(names)
        assert primary is not None
        lost, died_s = await group.shards_at(primary), monotonic()
        primary.kill()  # and no fault tells of it
        await group.promoted(names, primary)
        primary.start()
        # Both the one that died and its heir tell of it: by the word of others neither may be the primary by then.
        await until(lambda: sum(seen.until_s > died_s for seen in told_of(lost)) >= 2)


class Untold(Run):
    """A run whose faults nobody writes down: to the judge nothing was ever wrong."""

    async def _inject(self, testbed: target.Testbed, row: list[Occurrence], began_s: float) -> None:
        for occurrence in row:
            await asyncio.sleep(began_s + occurrence.at_s - monotonic())
            await occurrence.fault.act(testbed, occurrence)


async def test_a_failover_that_no_fault_made_is_not_held_against_the_cache() -> None:
    any_binary()
    plan = make_plan(
        url=None,
        seconds=9.0,
        seed=1,
        faults=chosen("failover"),
        nodes=2,
        bound_s=0.5,
        rate=300,
        write_rate=20,
        kind="sentinel",
    )
    verdict = await Untold(plan).verdict()
    verdict.raise_for_broken()
    assert verdict.faults.keys() == {"by-itself"}
