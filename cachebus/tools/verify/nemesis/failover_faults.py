"""Failovers of which more is amiss than that a primary is lost: its network stands still as well, nodes do not hear of
them, or a replica is new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cachebus.base.clock import monotonic
from cachebus.tools.harness.proxy import Proxy
from cachebus.tools.servers.redis import EmbeddedServer, instead_of
from cachebus.tools.verify.nemesis.group_faults import NONE, group_of, of_group, succeeded, was_away
from cachebus.tools.verify.target.group import GroupUnderTest
from cachebus.tools.verify.target.node_proxies import NodeProxies
from cachebus.tools.verify.target.testbed import Occurrence, Testbed, pause

FROZEN_MS: Final = 3_500
"""Who is silent for so long is held for dead. The promises need more than three seconds: for so long a primary may
count replicas as keeping up that have left it."""
LATE_S: Final = (0.0, 1.0)
"""So long after a machine has woken, the hang-ups come that were sent to it: hosts try ever less often."""


async def _frozen(testbed: Testbed, occurrence: Occurrence) -> frozenset[int] | None:
    """A primary's whole machine stands still: nothing arrives there, and no hang-up either. It wakes beside the one
    that was promoted, and is met by nodes that nobody can tell of that one."""
    dice, group = occurrence.dice(), group_of(testbed)
    names = group.some_shard(dice)
    await group.be_patient(FROZEN_MS)
    # Else a failover that is under way already may promote another one sooner.
    primary = await group.primary(names) if await group.calm() else None
    if primary is None:
        await group.be_patient()
        return NONE
    place, network = group.place(primary), group.network_of(primary)
    clients = [road.to(place) for road in _roads(testbed).values()]
    tellers = list(_tellers(testbed, group, primary))
    try:
        primary.pause()
        frozen_s = monotonic()
        for proxy in (*network, *clients, *tellers):
            proxy.hold()
        await group.promoted(names, primary)
        was_away(testbed, frozen_s)
        await pause(occurrence.lasts_s)
        primary.resume()
        _restored(clients)
        await pause(dice.uniform(*LATE_S))
        _restored(network)
        await pause(occurrence.lasts_s)
    finally:
        primary.resume()
        _restored([*clients, *network, *tellers])
        await group.be_patient()
    await group.followed()
    return None


def _roads(testbed: Testbed) -> dict[int, NodeProxies]:
    """By node: its ways to the servers."""
    return {node: road for node, road in testbed.proxies.items() if isinstance(road, NodeProxies)}


def _tellers(testbed: Testbed, group: GroupUnderTest, primary: EmbeddedServer) -> Iterator[Proxy]:
    """The ways of every other node to all that could tell it where the primary is."""
    others = group.sentinels or [server for server in group.data if server is not primary]
    for node, road in _roads(testbed).items():
        if node % 2:
            yield from (road.to(group.place(other)) for other in others)


def _restored(proxies: list[Proxy]) -> None:
    for proxy in proxies:
        proxy.restore()


async def _unseen(testbed: Testbed, occurrence: Occurrence) -> None:
    """Some nodes hear nothing from all Sentinels, or from some: neither that another primary is promoted, nor that the
    old one, which is back where they knew it, is none any more."""
    dice, group = occurrence.dice(), group_of(testbed)
    names, roads = group.some_shard(dice), _roads(testbed)
    primary = await group.primary(names)
    if primary is None:
        return
    nodes = dice.sample(sorted(roads), dice.randint(1, max(1, len(roads) - 1)))
    silent = dice.sample(group.sentinels, dice.randint(1, len(group.sentinels)))
    ways = [roads[node].to(group.place(sentinel)) for node in nodes for sentinel in silent]
    keep_silent, lives = dice.choice((Proxy.cut, Proxy.hold)), dice.random() < 0.5
    try:
        for way in ways:
            keep_silent(way)
        if lives:
            await group.hand_over(names, dice)
            await group.promoted(names, primary)
        else:
            primary.kill()
            async with succeeded(testbed, names, primary):
                await pause(occurrence.lasts_s / 2)
        await pause(occurrence.lasts_s / 2)
    finally:
        _restored(ways)
    await group.followed()


async def _newcomer(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
    """A replica never comes back. A new one takes its place, and while it copies all data, or soon after that, the
    primary dies."""
    dice, group = occurrence.dice(), group_of(testbed)
    names = group.some_shard(dice)
    primary = await group.primary(names)
    replicas = [] if primary is None else await group.replicas(primary)
    if primary is None or not replicas:
        return NONE
    shards = await group.shards_beside(names, primary)
    fresh = await group.replace(dice.choice(replicas))
    await group.follow(fresh, primary)
    await pause(dice.choice((0.0, occurrence.lasts_s / 2)))
    primary.kill()
    async with succeeded(testbed, names, primary):
        heir = await group.primary(names, but=primary)
        if heir is not None and heir is not fresh:
            await group.follow(fresh, heir)
        await pause(occurrence.lasts_s / 2)
    await group.followed()
    return shards


async def _impostor(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
    """A primary dies, and at its address there is another server by the time that nodes come back: one of no Cluster,
    which does all that it is asked, or a node that has lost its memory, which knows nobody."""
    dice, group = occurrence.dice(), group_of(testbed)
    names = group.some_shard(dice)
    primary = await group.primary(names)
    if primary is None:
        return NONE
    shards = await group.shards_beside(names, primary)
    gone_s = monotonic()
    conf = ["cluster-enabled yes"] if dice.random() < 0.5 else []
    with instead_of(primary, *conf):
        await group.promoted(names, primary)
        was_away(testbed, gone_s)
        await pause(occurrence.lasts_s)
    primary.start()
    await group.followed()
    return shards


FAILOVER_FAULTS: Final = (
    of_group(
        "primary-frozen",
        "SIGSTOP of a primary, whose network stands still too; it wakes beside another, of which some nodes can't know",
        _frozen,
        (1.5, 3.0),
    ),
    of_group(
        "failover-unseen",
        "a failover, while nodes are cut off from some Sentinels or all (Sentinel)",
        _unseen,
        (0.5, 3.0),
    ),
    of_group(
        "impostor",
        "a primary dies, and another server has its address when nodes come back: of no Cluster, or empty (Cluster)",
        _impostor,
        (2.0, 6.0),
    ),
    of_group(
        "failover-newcomer",
        "a primary is killed while a new replica copies all data, or soon after",
        _newcomer,
        (0.5, 3.0),
    ),
)
