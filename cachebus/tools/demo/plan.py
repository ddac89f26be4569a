"""What a run is made of: the user's choices, and the accesses that go with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cachebus.tools.demo import generator
from cachebus.tools.demo.trace import Survey

SOURCE_LATENCY_S = 0.004


@dataclass(frozen=True, slots=True)
class Plan:
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
    """None: a server of our own."""
    trace: Path | None = None
    """None: the generator."""
    cut: bool = True
    compare: bool = True
    bus: str = "redis"
    """What carries events: "redis", or "kafka", one of our own."""
    writes: str = "direct"
    """How caches hear of a write: from its writer ("direct"), or by workers behind a PostgreSQL of our own, which
    follow an "outbox" in it, or its log ("cdc")."""


@dataclass(frozen=True, slots=True)
class Load:
    """The accesses of a run."""

    words: Iterable[int]
    """Every object that may be asked for."""
    accesses: int | None
    """How many there are; None: no end."""
    rate: float
    duration_s: float
    """How long a run is expected to take at most."""


def load_of(plan: Plan, survey: Survey | None) -> Load:
    """The generator's accesses, or a trace's: that one is slowed down if it would else end before its time."""
    if survey is None:
        return Load(generator.universe(), None, plan.rate, plan.duration_s)
    lasting = survey.accesses / plan.nodes / plan.duration_s
    rate = min(plan.rate, lasting) if plan.rate else 0.0
    return Load(survey.words, survey.accesses, rate, plan.duration_s)
