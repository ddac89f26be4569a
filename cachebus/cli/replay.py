"""`cachebus replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachebus.cli.options import (
    AsJson,
    Bound,
    Compare,
    Cut,
    Duration,
    L1Entries,
    Nodes,
    Rate,
    RedisUrl,
    Seed,
    Ttl,
    WriteRatio,
)

Trace = Annotated[
    Path,
    typer.Argument(
        metavar="TRACE", help="An access trace as the cache2k benchmarks have it: xz of big-endian 32-bit integers."
    ),
]


def replay(
    trace: Trace,
    nodes: Nodes = 4,
    duration: Duration = 15.0,
    rate: Rate = 2_000.0,
    write_ratio: WriteRatio = 0.01,
    l1_entries: L1Entries = 10_000,
    bound: Bound = 2.0,
    ttl: Ttl = 5.0,
    seed: Seed = 1,
    redis_url: RedisUrl = None,
    cut: Cut = True,
    compare: Compare = True,
    json: AsJson = False,
) -> None:
    """Replay a recorded access trace: what `demo` does, with the accesses of a real system.

    The nodes share the trace's accesses. A run ends after its duration, or with the trace; a trace that would end
    before is played more slowly.

    Exit status: 0, 1 if a promise broke, 2 if it could not start: no server there, or a file that is no trace or cut.
    """
    from cachebus.cli.performance import perform
    from cachebus.tools.demo.plan import DemoPlan

    plan = DemoPlan(
        nodes=nodes,
        duration_s=duration,
        rate=rate,
        write_ratio=write_ratio,
        l1_entries=l1_entries,
        bound_s=bound,
        ttl_s=ttl,
        seed=seed,
        redis_url=redis_url,
        trace=trace,
        cut=cut,
        compare=compare,
    )
    raise typer.Exit(perform(plan, json=json))
