"""Faults of several servers that are one service: failovers, and slots that move."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from cachebus.cli.verify.group import GroupUnderTest
from cachebus.cli.verify.stage import Act, Fault, Stage, Strike, rest
from cachebus.clock import monotonic
from cachebus.l2.names import ShardNames


def _group(stage: Stage) -> GroupUnderTest:
    if stage.server.group is None:
        raise RuntimeError("this server is alone")
    return stage.server.group


def _failover(*, loses: bool) -> Act:
    async def act(stage: Stage, blow: Strike) -> None:
        group = _group(stage)
        names = group.some_shard(blow.dice())
        primary = await group.primary(names)
        if primary is None:
            return
        replicas = await group.replicas(primary) if loses else []
        for replica in replicas:
            replica.pause()  # what is written from now on is in the primary alone
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
            await rest(blow.lasts_s / 2)
        finally:
            stage.away.append((gone_s, monotonic()))
            primary.start()

    return act


async def _pause(stage: Stage, blow: Strike) -> None:
    group = _group(stage)
    primary = await group.primary(group.some_shard(blow.dice()))
    if primary is None:
        return
    primary.pause()
    paused_s = monotonic()
    try:
        await rest(blow.lasts_s)
    finally:
        stage.away.append((paused_s, monotonic()))
        primary.resume()


async def _move(stage: Stage, blow: Strike) -> None:
    dice: Random = blow.dice()
    group = _group(stage)
    began_s = monotonic()
    try:
        await group.move(group.some_shard(dice), dice)
    finally:
        stage.away.append((began_s, monotonic()))


def _at_primary(*command: str, own: Callable[[ShardNames], str] | None = None) -> Act:
    """A command at the primary of some shard; `own`: with the name of that one of the shard's own keys behind it."""

    async def act(stage: Stage, blow: Strike) -> None:
        group = _group(stage)
        names = group.some_shard(blow.dice())
        primary = await group.primary(names)
        if primary is not None:
            await group.command(primary, *command, *(() if own is None else (own(names),)))

    return act


def _fault(name: str, what: str, act: Act, lasts: tuple[float, float] = (0.0, 0.0)) -> Fault:
    return Fault(name, "group", what, lasts, act, own=True, ends_leases=True)


GROUP_FAULTS: Final = (
    _fault("failover", "SIGKILL of a primary; it returns when another has taken its place",
           _failover(loses=False), (0.5, 2.0)),
    _fault("failover-loss", "the same, after its replicas were stopped for a while: what was written then is lost",
           _failover(loses=True), (0.5, 2.0)),
    _fault("primary-pause", "SIGSTOP of a primary, later SIGCONT, when another may have taken its place",
           _pause, (0.3, 3.0)),
    _fault("move-slot", "a slot moves to another primary, with its keys (Cluster)", _move),
    _fault("primary-flush", "FLUSHALL at a primary", _at_primary("FLUSHALL")),
    _fault("primary-meta", "a shard's meta is evicted", _at_primary("DEL", own=lambda names: names.meta)),
    _fault("primary-scripts", "SCRIPT FLUSH at a primary", _at_primary("SCRIPT", "FLUSH")),
    _fault("primary-clients", "CLIENT KILL TYPE normal at a primary", _at_primary("CLIENT", "KILL", "TYPE", "normal")),
    _fault("primary-pubsub", "CLIENT KILL TYPE pubsub at a primary", _at_primary("CLIENT", "KILL", "TYPE", "pubsub")),
)  # fmt: skip
