"""What faults act on: the proxies, the server, the broker and the nodes of a run; and the record of injected faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple

from cachebus.base.clock import monotonic
from cachebus.tools.verify.fleet.processes import FleetUnderTest
from cachebus.tools.verify.target.broker import Broker
from cachebus.tools.verify.target.node_proxies import NodeProxy
from cachebus.tools.verify.target.server import ServerProcess, ServerUnderTest

Where = Literal["network", "server", "node", "source", "group", "broker", "bus"]


class InjectedFault(NamedTuple):
    """An injected fault: on which node (0 for the server), and from when until when, in `monotonic` seconds."""

    fault: str
    node: int
    from_s: float
    until_s: float
    shards: frozenset[int] | None = None
    """The shards that it may have made unavailable; None for all."""


@dataclass
class Testbed:
    """What the faults of a run act on."""

    bound_s: float
    server: ServerUnderTest
    proxies: dict[int, NodeProxy]
    """By node; empty where nodes reach the server directly."""
    fleet: FleetUnderTest
    broker: Broker | None = None
    """What carries the events, where that is not the server."""
    done: list[InjectedFault] = field(default_factory=list)
    under_way: dict[str, float] = field(default_factory=dict)
    """Faults that are at work now, with the time of their beginning."""
    away: list[tuple[float, float]] = field(default_factory=list)
    """When nobody could reach the server."""

    repaired: tuple[float, float] = (0.0, 0.0)
    """When the run repaired what the faults had left."""

    @property
    def required_broker(self) -> Broker:
        """The broker, for faults that need one."""
        if self.broker is None:
            raise RuntimeError("this run has no broker")
        return self.broker

    @property
    def machine(self) -> ServerProcess:
        """The process of the run's own server, for faults that need it."""
        if self.server.machine is None:
            raise RuntimeError("this server is not ours")
        return self.server.machine


class Occurrence(NamedTuple):
    """One planned occurrence of a fault."""

    at_s: float
    """Seconds from the run's start."""
    fault: Fault
    node: int
    """0 for the server."""
    lasts_s: float
    seed: int

    def dice(self) -> Random:
        """A random generator, the same for the same seed."""
        return Random(self.seed)


Act = Callable[[Testbed, Occurrence], Awaitable[frozenset[int] | None]]
"""Injects the fault and undoes it. Returns the shards that it may have made unavailable; None for all."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault."""

    name: str
    where: Where
    what: str
    """For people."""
    lasts: tuple[float, float]
    """How long it lasts, at least and at most, in staleness bounds; (0, 0) for what happens in a moment."""
    act: Act
    own: bool = False
    """Whether it needs a server of the run's own, though it is not a fault of the server alone."""
    ends_leases: bool = False
    """Whether it may end the fill leases, on any node."""


async def inject(testbed: Testbed, occurrence: Occurrence) -> None:
    """Inject a fault and record it. It is undone in any case."""
    where = f" (node {occurrence.node})" if occurrence.node else ""
    name = f"{occurrence.fault.name}{where}"
    from_s = testbed.under_way[name] = monotonic()
    shards = None
    try:
        shards = await occurrence.fault.act(testbed, occurrence)
    finally:
        del testbed.under_way[name]
        testbed.done.append(InjectedFault(occurrence.fault.name, occurrence.node, from_s, monotonic(), shards))


async def pause(seconds: float) -> None:
    """Wait while a fault lasts."""
    await asyncio.sleep(seconds)
