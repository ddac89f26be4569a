"""Where faults happen: the proxies, the server and the nodes of a run, and the record of what was done to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple

from cachebus.base.clock import monotonic
from cachebus.tools.verify.fleet.processes import Fleet
from cachebus.tools.verify.target.broker import Broker
from cachebus.tools.verify.target.roads import Road
from cachebus.tools.verify.target.server import Machine, ServerUnderTest

Where = Literal["network", "server", "node", "source", "group", "broker", "bus"]


class Done(NamedTuple):
    """A fault that was made: on which node (0: the server), and from when until when, in `monotonic` seconds."""

    fault: str
    node: int
    from_s: float
    until_s: float
    shards: frozenset[int] | None = None
    """Those that it may have kept from being served; None: all."""


@dataclass
class Stage:
    """What a run is played on."""

    bound_s: float
    server: ServerUnderTest
    proxies: dict[int, Road]
    """By node; empty where nodes reach the server directly."""
    crew: Fleet
    broker: Broker | None = None
    """What carries the events, where that is not the server."""
    done: list[Done] = field(default_factory=list)
    under_way: dict[str, float] = field(default_factory=dict)
    """Faults of this moment, with when they began."""
    away: list[tuple[float, float]] = field(default_factory=list)
    """When the whole server was out of everybody's reach."""

    mended: tuple[float, float] = (0.0, 0.0)
    """When what the faults had left was set right."""

    @property
    def the_broker(self) -> Broker:
        """Kafka, for faults that need it."""
        if self.broker is None:
            raise RuntimeError("this run has no broker")
        return self.broker

    @property
    def machine(self) -> Machine:
        """The server's process, for faults that need one of our own."""
        if self.server.machine is None:
            raise RuntimeError("this server is not ours")
        return self.server.machine


class Strike(NamedTuple):
    """A fault that is to be made."""

    at_s: float
    """From the run's start."""
    fault: Fault
    node: int
    """0: the server."""
    lasts_s: float
    seed: int

    def dice(self) -> Random:
        """Chance, the same for the same seed."""
        return Random(self.seed)


Act = Callable[[Stage, Strike], Awaitable[frozenset[int] | None]]
"""Gives the shards that it may have kept from being served; None: all."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault."""

    name: str
    where: Where
    what: str
    """For people."""
    lasts: tuple[float, float]
    """At least and at most, in bounds; (0, 0) for what is done in a moment."""
    act: Act
    own: bool = False
    """Whether it needs a server of our own, though it is not one of the server's faults alone."""
    ends_leases: bool = False
    """Whether loads may be begun twice because of it, on any node."""


async def strike(stage: Stage, blow: Strike) -> None:
    """Make a fault, and note it; whatever happens, it is undone in the end."""
    where = f" (node {blow.node})" if blow.node else ""
    name = f"{blow.fault.name}{where}"
    from_s = stage.under_way[name] = monotonic()
    shards = None
    try:
        shards = await blow.fault.act(stage, blow)
    finally:
        del stage.under_way[name]
        stage.done.append(Done(blow.fault.name, blow.node, from_s, monotonic(), shards))


async def rest(seconds: float) -> None:
    """While it lasts."""
    await asyncio.sleep(seconds)
