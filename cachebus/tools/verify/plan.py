"""The plan of a run: the user's choices, checked and completed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from math import inf
from typing import Final

from cachebus.errors import ConfigError
from cachebus.tools.servers.redis_binaries import ServerBinary
from cachebus.tools.verify.target.server import ALONE, BUSES, KINDS, REDIS
from cachebus.tools.verify.target.testbed import Fault


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """The choices. Times in seconds."""

    seed: int
    faults: tuple[Fault, ...]
    nodes: int = 4
    seconds: float = 30.0
    bound_s: float = 1.0
    rate: float = 2_000.0
    """Reads a second and node; 0 for as fast as possible."""
    write_rate: float = 20.0
    """Writes a second and node."""
    url: str | None = None
    """The user's server; None: the run starts one of its own."""
    binary: ServerBinary | None = None
    """The program of the run's own server; None: the best one on this machine."""
    kind: str = ALONE
    """How the run's own server is set up, one of `KINDS`."""
    bus: str = REDIS
    """What carries the events, one of `BUSES`. The run starts its own Kafka."""
    encryption: bool = False
    """Whether values lie encrypted in L2, by keys that nodes change as they are started again."""


WRITE_RATE: Final = 20.0
URL_WRITE_RATE: Final = 2.0
"""On the user's server, which should be mostly read."""
LEAST: Final = {"nodes": 2, "seconds": 1.0, "bound_s": 0.2, "rate": 0.0, "write_rate": 0.0}
MOST: Final = {"nodes": 32, "seconds": 86_400.0, "bound_s": 60.0}


def make_plan(
    *,
    url: str | None,
    seconds: float,
    seed: int | None,
    faults: tuple[Fault, ...],
    nodes: int,
    bound_s: float,
    rate: float,
    write_rate: float | None,
    kind: str = ALONE,
    bus: str = REDIS,
) -> VerifyPlan:
    """The plan of these choices, with defaults filled in; `ConfigError` for choices that can't be."""
    if kind not in KINDS:
        raise ConfigError(f"kind is {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {kind!r}")
    if bus not in BUSES:
        raise ConfigError(f"bus is {' or '.join(BUSES)}, not {bus!r}")
    if url is not None and bus != REDIS:
        raise ConfigError("either a URL or a bus: only against a server of its own is one started for the events")
    if url is not None and kind != ALONE:
        raise ConfigError("either a URL or a kind: the server at a URL is what it is")
    if write_rate is None:
        write_rate = WRITE_RATE if url is None else URL_WRITE_RATE
    given = {"nodes": nodes, "seconds": seconds, "bound_s": bound_s, "rate": rate, "write_rate": write_rate}
    for name, number in given.items():
        if not LEAST[name] <= number <= MOST.get(name, inf):
            most = f" and at most {MOST[name]:g}" if name in MOST else ""
            raise ConfigError(f"{name} must be at least {LEAST[name]:g}{most}, not {number}")
    return VerifyPlan(
        seed=secrets.randbelow(1 << 31) if seed is None else seed,
        faults=faults,
        nodes=nodes,
        seconds=seconds,
        bound_s=bound_s,
        rate=rate,
        write_rate=write_rate,
        url=url,
        kind=kind,
        bus=bus,
    )
