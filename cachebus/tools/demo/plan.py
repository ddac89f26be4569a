"""The plan of a run: the user's choices, and the accesses that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cachebus.tools.demo import generator
from cachebus.tools.demo.trace import Survey

SOURCE_LATENCY_S = 0.004


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """The choices. Times in seconds, rates in accesses a second and node."""

    nodes: int = 4
    duration_s: float = 15.0
    rate: float = 2_000.0
    write_ratio: float = 0.01
    l1_entries: int = 10_000
    bound_s: float = 2.0
    ttl_s: float = 5.0
    """Of the dict that cachebus is compared with."""
    seed: int = 1
    redis_url: str | None = None
    """The user's server; None: the run starts one of its own."""
    trace: Path | None = None
    """None: the generator."""
    cut: bool = True
    compare: bool = True
    bus: str = "redis"
    """What carries events: "redis", or "kafka", which the run starts."""
    writes: str = "direct"
    """How caches learn of a write: from its writer ("direct"), or from workers that follow an "outbox" or the log
    ("cdc") of a PostgreSQL that the run starts."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The accesses of a run."""

    words: Iterable[int]
    """Every object that may be asked for."""
    accesses: int | None
    """How many there are; None: no end."""
    rate: float
    duration_s: float
    """How long a run is expected to take at most."""


def load_of(plan: DemoPlan, survey: Survey | None) -> Workload:
    """The generator's accesses, or those of a trace, slowed down if the trace would end too early."""
    if survey is None:
        return Workload(generator.universe(), None, plan.rate, plan.duration_s)
    lasting = survey.accesses / plan.nodes / plan.duration_s
    rate = min(plan.rate, lasting) if plan.rate else 0.0
    return Workload(survey.words, survey.accesses, rate, plan.duration_s)
