"""Faults of a group of servers: failovers, splits, and slot moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Final

from cachebus.base.clock import monotonic
from cachebus.l2.names import ShardNames
from cachebus.resp import slot_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.verify.target.group import GroupUnderTest
from cachebus.tools.verify.target.node_proxies import NodeProxies
from cachebus.tools.verify.target.testbed import Act, Fault, Occurrence, Testbed, pause

NONE: Final = frozenset[int]()
SETTLED_S: Final = 4.0
"""A primary counts once a second which replicas keep up, and each speaks once a second: for half of this one that was
promoted just now refuses all writes, on a machine that has time. One that refuses them for longer has too few."""


def group_of(testbed: Testbed) -> GroupUnderTest:
    """The servers, for faults that need several."""
    if testbed.server.group is None:
        raise RuntimeError("this server is alone")
    return testbed.server.group


def _failover(*, loses: bool) -> Act:
    async def act(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
        group = group_of(testbed)
        names = group.some_shard(occurrence.dice())
        primary = await group.primary(names)
        if primary is None:
            return NONE
        shards = await group.shards_beside(names, primary)
        replicas = await group.replicas(primary) if loses else []
        for replica in replicas:
            replica.pause()  # the primary alone has what is written from now on
        try:
            if loses:
                await pause(occurrence.lasts_s / 2)
            primary.kill()
        finally:
            for replica in replicas:
                replica.resume()
        async with succeeded(testbed, names, primary):
            await pause(occurrence.lasts_s / 2)
        await group.followed()
        return shards

    return act


@asynccontextmanager
async def succeeded(testbed: Testbed, names: ShardNames, killed: EmbeddedServer) -> AsyncIterator[None]:
    """While another one has the place of a primary that was just killed; it is back behind the block, with nothing."""
    gone_s = monotonic()
    try:
        await group_of(testbed).promoted(names, killed)
        was_away(testbed, gone_s)
        yield
    finally:
        killed.start()


def was_away(testbed: Testbed, from_s: float) -> None:
    """From then until now nobody could reach a primary, if there is only one."""
    if group_of(testbed).is_one:
        testbed.away.append((from_s, monotonic()))


async def _pause(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
    group = group_of(testbed)
    names = group.some_shard(occurrence.dice())
    primary = await group.primary(names)
    if primary is None:
        return NONE
    shards = await group.shards_beside(names, primary)
    primary.pause()
    paused_s = monotonic()
    promoted = asyncio.create_task(group.promoted(names, primary))
    try:
        await asyncio.wait([promoted], timeout=occurrence.lasts_s)
        was_away(testbed, paused_s)
        await pause(max(0.0, occurrence.lasts_s - (monotonic() - paused_s)))
    finally:
        primary.resume()
        promoted.cancel()
        await asyncio.wait([promoted])
    await group.followed()
    return shards


async def _move(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
    dice: Random = occurrence.dice()
    group = group_of(testbed)
    names = group.some_shard(dice)
    await group.move(names, dice)
    return group.only(names)


def _half_moved(*, hangs: bool) -> Act:
    async def act(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
        dice, group = occurrence.dice(), group_of(testbed)
        return await group.half_move(group.some_shard(dice), dice, lambda: pause(occurrence.lasts_s), hangs=hangs)

    return act


async def _uncover(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
    """A slot that nobody serves, as a migration leaves it that was done wrong."""
    group = group_of(testbed)
    names = group.some_shard(occurrence.dice())
    owner, slot = await group.primary(names), slot_of(names.log)
    if owner is None:
        return NONE
    try:
        for server in group.data:
            await group.command(server, "CLUSTER", "DELSLOTS", slot)
        await pause(occurrence.lasts_s)
    finally:
        # A node may have learned it from others first, and refuse; and the slot's owner may have died meanwhile.
        for server in group.data:
            await group.command(server, "CLUSTER", "DELSLOTS", slot)
        await group.command(await group.some_primary(owner), "CLUSTER", "ADDSLOTS", slot)
    return group.only(names)


async def _hand_over(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
    dice, group = occurrence.dice(), group_of(testbed)
    names = group.some_shard(dice)
    shards = await group.shards_beside(names, await group.primary(names))
    await group.hand_over(names, dice)
    await pause(occurrence.lasts_s)
    await group.followed()
    return shards


async def _split(testbed: Testbed, occurrence: Occurrence) -> None:
    """Two sides, both alive: half of the nodes and of the replicas stay with the primary, the others have one that was
    promoted by hand, since the Sentinels are on neither. In the end the primary is the only one again, and what the
    other had acknowledged is lost. Nodes come to the promoted one once it takes writes, if it ever does."""
    dice, group = occurrence.dice(), group_of(testbed)
    primary = await group.primary(group.some_shard(dice))
    replicas = [] if primary is None else await group.replicas(primary)
    if primary is None or len(replicas) < 2:
        return
    dice.shuffle(replicas)
    promoted, *others = replicas[len(replicas) // 2 :]
    place = group.place(primary)
    roads = [road.to(place) for node, road in testbed.proxies.items() if node % 2 and isinstance(road, NodeProxies)]
    try:
        for sentinel in group.sentinels:
            sentinel.pause()
        await group.command(promoted, "REPLICAOF", "NO", "ONE")
        for other in others:
            await group.follow(other, promoted)
        await group.written(promoted, within_s=SETTLED_S)
        for road in roads:
            road.lead(group.dials[group.place(promoted)])
        await pause(occurrence.lasts_s)
    finally:
        for road in roads:
            road.lead(group.dials[place])
        for replica in (promoted, *others):
            await group.follow(replica, primary)
        for sentinel in group.sentinels:
            sentinel.resume()
    await group.followed()


async def _sentinels_away(testbed: Testbed, occurrence: Occurrence) -> None:
    sentinels = group_of(testbed).sentinels
    try:
        for sentinel in sentinels:
            sentinel.pause()
        await pause(occurrence.lasts_s)
    finally:
        for sentinel in sentinels:
            sentinel.resume()


async def _no_replicas(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
    group = group_of(testbed)
    names = group.some_shard(occurrence.dice())
    primary = await group.primary(names)
    if primary is None:
        return NONE
    shards = await group.shards_beside(names, primary)
    had = (await ask(primary, "CONFIG", "GET", "min-replicas-to-write"))[1].decode()
    refused_s = monotonic()
    try:
        await group.command(primary, "CONFIG", "SET", "min-replicas-to-write", "9")
        await pause(occurrence.lasts_s)
    finally:
        was_away(testbed, refused_s)
        await group.command(primary, "CONFIG", "SET", "min-replicas-to-write", had)
    return shards


def _at_primary(*command: str, own: Callable[[ShardNames], str] | None = None) -> Act:
    """A command at the primary of some shard; `own`: with the name of that one of the shard's own keys behind it."""

    async def act(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
        group = group_of(testbed)
        names = group.some_shard(occurrence.dice())
        primary = await group.primary(names)
        if primary is None:
            return NONE
        await group.command(primary, *command, *(() if own is None else (own(names),)))
        return await group.shards_beside(names, primary)

    return act


def of_group(name: str, what: str, act: Act, lasts: tuple[float, float] = (0.0, 0.0)) -> Fault:
    """One of several servers that are one service."""
    return Fault(name, "group", what, lasts, act, own=True, ends_leases=True)


GROUP_FAULTS: Final = (
    of_group(
        "failover",
        "SIGKILL of a primary; it returns when another has taken its place",
        _failover(loses=False),
        (0.5, 2.0),
    ),
    of_group(
        "failover-loss",
        "the same, after its replicas were stopped for a while: what was written then is lost",
        _failover(loses=True),
        (0.5, 2.0),
    ),
    of_group(
        "primary-pause",
        "SIGSTOP of a primary, later SIGCONT, when another may have taken its place",
        _pause,
        (0.3, 3.0),
    ),
    of_group("move-slot", "a slot moves to another primary, with its keys (Cluster)", _move),
    of_group(
        "handover",
        "a replica takes the place of a primary that lives (SENTINEL FAILOVER, CLUSTER FAILOVER)",
        _hand_over,
        (0.5, 3.0),
    ),
    of_group(
        "split", "two primaries, each with a part of the replicas and of the nodes (Sentinel)", _split, (4.0, 7.0)
    ),
    of_group("sentinels-away", "SIGSTOP of all Sentinels", _sentinels_away, (0.5, 3.0)),
    of_group(
        "half-moved",
        "a part of a slot's keys moves to another primary, and back (Cluster)",
        _half_moved(hangs=False),
        (0.3, 2.0),
    ),
    of_group(
        "hung-target", "the same, and that primary hangs meanwhile (Cluster)", _half_moved(hangs=True), (0.3, 1.0)
    ),
    of_group("uncovered-slot", "a slot that no server has (Cluster)", _uncover, (0.3, 2.0)),
    of_group("primary-noreplicas", "a primary refuses writes: NOREPLICAS", _no_replicas, (0.3, 2.0)),
    of_group("primary-flush", "FLUSHALL at a primary", _at_primary("FLUSHALL")),
    of_group("primary-meta", "a shard's meta is evicted", _at_primary("DEL", own=lambda names: names.meta)),
    of_group("primary-scripts", "SCRIPT FLUSH at a primary", _at_primary("SCRIPT", "FLUSH")),
    of_group(
        "primary-clients", "CLIENT KILL TYPE normal at a primary", _at_primary("CLIENT", "KILL", "TYPE", "normal")
    ),
    of_group("primary-pubsub", "CLIENT KILL TYPE pubsub at a primary", _at_primary("CLIENT", "KILL", "TYPE", "pubsub")),
)
