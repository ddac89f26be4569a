"""Faults of a group of servers: failovers, splits, and slot moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Final

from cachebus.base.clock import monotonic
from cachebus.l2.names import ShardNames
from cachebus.resp import slot_of
from cachebus.tools.harness.proxy import HOST
from cachebus.tools.servers.redis_groups import ask
from cachebus.tools.verify.target.group import GroupUnderTest
from cachebus.tools.verify.target.roads import Roads
from cachebus.tools.verify.target.stage import Act, Fault, Stage, Strike, rest

NONE: Final = frozenset[int]()


def _group(stage: Stage) -> GroupUnderTest:
    if stage.server.group is None:
        raise RuntimeError("this server is alone")
    return stage.server.group


def _failover(*, loses: bool) -> Act:
    async def act(stage: Stage, blow: Strike) -> frozenset[int]:
        group = _group(stage)
        names = group.some_shard(blow.dice())
        primary = await group.primary(names)
        if primary is None:
            return NONE
        shards = await group.shards_at(primary)
        replicas = await group.replicas(primary) if loses else []
        for replica in replicas:
            replica.pause()  # the primary alone has what is written from now on
        try:
            if loses:
                await rest(blow.lasts_s / 2)
            primary.kill()
        finally:
            for replica in replicas:
                replica.resume()
        gone_s = monotonic()
        try:
            await group.promoted(names, primary)
            _was_away(stage, gone_s)
            await rest(blow.lasts_s / 2)
        finally:
            primary.start()
        await group.followed()
        return shards

    return act


def _was_away(stage: Stage, from_s: float) -> None:
    """Note that from then until now nobody could reach the primary, if there is only one."""
    if _group(stage).is_one:
        stage.away.append((from_s, monotonic()))


async def _pause(stage: Stage, blow: Strike) -> frozenset[int]:
    group = _group(stage)
    names = group.some_shard(blow.dice())
    primary = await group.primary(names)
    if primary is None:
        return NONE
    shards = await group.shards_at(primary)
    primary.pause()
    paused_s = monotonic()
    promoted = asyncio.create_task(group.promoted(names, primary))
    try:
        await asyncio.wait([promoted], timeout=blow.lasts_s)
        _was_away(stage, paused_s)
        await rest(max(0.0, blow.lasts_s - (monotonic() - paused_s)))
    finally:
        primary.resume()
        promoted.cancel()
        await asyncio.wait([promoted])
    await group.followed()
    return shards


async def _move(stage: Stage, blow: Strike) -> frozenset[int]:
    dice: Random = blow.dice()
    group = _group(stage)
    names = group.some_shard(dice)
    await group.move(names, dice)
    return group.only(names)


def _half_moved(*, hangs: bool) -> Act:
    async def act(stage: Stage, blow: Strike) -> frozenset[int]:
        dice, group = blow.dice(), _group(stage)
        return await group.half_move(group.some_shard(dice), dice, lambda: rest(blow.lasts_s), hangs=hangs)

    return act


async def _uncover(stage: Stage, blow: Strike) -> frozenset[int]:
    """Nobody serves a slot, as after a wrong migration."""
    group = _group(stage)
    names = group.some_shard(blow.dice())
    owner, slot = await group.primary(names), slot_of(names.log)
    if owner is None:
        return NONE
    try:
        for server in group.data:
            await group.command(server, "CLUSTER", "DELSLOTS", slot)
        await rest(blow.lasts_s)
    finally:
        # A node may have learned it from others first, and refuse; and the slot's owner may have died meanwhile.
        for server in group.data:
            await group.command(server, "CLUSTER", "DELSLOTS", slot)
        await group.command(await group.some_primary(owner), "CLUSTER", "ADDSLOTS", slot)
    return group.only(names)


async def _hand_over(stage: Stage, blow: Strike) -> frozenset[int]:
    dice, group = blow.dice(), _group(stage)
    names = group.some_shard(dice)
    shards = await group.shards_at(await group.primary(names))
    await group.hand_over(names, dice)
    await rest(blow.lasts_s)
    await group.followed()
    return shards


async def _split(stage: Stage, blow: Strike) -> None:
    """A split with two sides that both live. Half of the nodes and replicas stay with the primary. The others get a
    replica that is promoted by hand, since the Sentinels are on neither side. In the end the primary is the only one
    again, and what the other one has acknowledged is lost."""
    dice, group = blow.dice(), _group(stage)
    primary = await group.primary(group.some_shard(dice))
    replicas = [] if primary is None else await group.replicas(primary)
    if primary is None or len(replicas) < 2:
        return
    dice.shuffle(replicas)
    promoted, *others = replicas[len(replicas) // 2 :]
    roads = [road.to(primary.port) for node, road in stage.proxies.items() if node % 2 and isinstance(road, Roads)]
    try:
        for sentinel in group.sentinels:
            sentinel.pause()
        await group.command(promoted, "REPLICAOF", "NO", "ONE")
        for other in others:
            await group.command(other, "REPLICAOF", HOST, promoted.port)
        for road in roads:
            road.lead(group.dials[promoted.port])
        await rest(blow.lasts_s)
    finally:
        for road in roads:
            road.lead(group.dials[primary.port])
        for replica in (promoted, *others):
            await group.command(replica, "REPLICAOF", HOST, primary.port)
        for sentinel in group.sentinels:
            sentinel.resume()
    await group.followed()


async def _sentinels_away(stage: Stage, blow: Strike) -> None:
    sentinels = _group(stage).sentinels
    try:
        for sentinel in sentinels:
            sentinel.pause()
        await rest(blow.lasts_s)
    finally:
        for sentinel in sentinels:
            sentinel.resume()


async def _no_replicas(stage: Stage, blow: Strike) -> frozenset[int]:
    group = _group(stage)
    primary = await group.primary(group.some_shard(blow.dice()))
    if primary is None:
        return NONE
    shards = await group.shards_at(primary)
    had = (await ask(primary, "CONFIG", "GET", "min-replicas-to-write"))[1].decode()
    refused_s = monotonic()
    try:
        await group.command(primary, "CONFIG", "SET", "min-replicas-to-write", "9")
        await rest(blow.lasts_s)
    finally:
        _was_away(stage, refused_s)
        await group.command(primary, "CONFIG", "SET", "min-replicas-to-write", had)
    return shards


def _at_primary(*command: str, own: Callable[[ShardNames], str] | None = None) -> Act:
    """A command at the primary of some shard; `own`: with the name of that one of the shard's own keys behind it."""

    async def act(stage: Stage, blow: Strike) -> frozenset[int]:
        group = _group(stage)
        names = group.some_shard(blow.dice())
        primary = await group.primary(names)
        if primary is None:
            return NONE
        await group.command(primary, *command, *(() if own is None else (own(names),)))
        return await group.shards_at(primary)

    return act


def _fault(name: str, what: str, act: Act, lasts: tuple[float, float] = (0.0, 0.0)) -> Fault:
    return Fault(name, "group", what, lasts, act, own=True, ends_leases=True)


GROUP_FAULTS: Final = (
    _fault(
        "failover",
        "SIGKILL of a primary; it returns when another has taken its place",
        _failover(loses=False),
        (0.5, 2.0),
    ),
    _fault(
        "failover-loss",
        "the same, after its replicas were stopped for a while: what was written then is lost",
        _failover(loses=True),
        (0.5, 2.0),
    ),
    _fault(
        "primary-pause",
        "SIGSTOP of a primary, later SIGCONT, when another may have taken its place",
        _pause,
        (0.3, 3.0),
    ),
    _fault("move-slot", "a slot moves to another primary, with its keys (Cluster)", _move),
    _fault(
        "handover",
        "a replica takes the place of a primary that lives (SENTINEL FAILOVER, CLUSTER FAILOVER)",
        _hand_over,
        (0.5, 3.0),
    ),
    _fault("split", "two primaries, each with a part of the replicas and of the nodes (Sentinel)", _split, (1.5, 4.0)),
    _fault("sentinels-away", "SIGSTOP of all Sentinels", _sentinels_away, (0.5, 3.0)),
    _fault(
        "half-moved",
        "a part of a slot's keys moves to another primary, and back (Cluster)",
        _half_moved(hangs=False),
        (0.3, 2.0),
    ),
    _fault("hung-target", "the same, and that primary hangs meanwhile (Cluster)", _half_moved(hangs=True), (0.3, 1.0)),
    _fault("uncovered-slot", "a slot that no server has (Cluster)", _uncover, (0.3, 2.0)),
    _fault("primary-noreplicas", "a primary refuses writes: NOREPLICAS", _no_replicas, (0.3, 2.0)),
    _fault("primary-flush", "FLUSHALL at a primary", _at_primary("FLUSHALL")),
    _fault("primary-meta", "a shard's meta is evicted", _at_primary("DEL", own=lambda names: names.meta)),
    _fault("primary-scripts", "SCRIPT FLUSH at a primary", _at_primary("SCRIPT", "FLUSH")),
    _fault("primary-clients", "CLIENT KILL TYPE normal at a primary", _at_primary("CLIENT", "KILL", "TYPE", "normal")),
    _fault("primary-pubsub", "CLIENT KILL TYPE pubsub at a primary", _at_primary("CLIENT", "KILL", "TYPE", "pubsub")),
)
