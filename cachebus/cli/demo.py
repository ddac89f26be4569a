"""`cachebus demo`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import typer

from cachebus.cli.options import (
    AsJson,
    Bound,
    Compare,
    Cut,
    Duration,
    L1Entries,
    Nodes,
    RedisUrl,
    Seed,
    Ttl,
    WriteRatio,
)

DIRECT_RATE: Final = 2_000.0
ROAD_RATE: Final = 500.0
"""With a PostgreSQL and workers beside the nodes: what two cores bear, so that delays tell of the road, not of them."""


class BusChoice(StrEnum):
    """What carries events."""

    REDIS = "redis"
    KAFKA = "kafka"


class WritePath(StrEnum):
    """How the caches hear of a write."""

    DIRECT = "direct"
    OUTBOX = "outbox"
    CDC = "cdc"


def demo(
    nodes: Nodes = 4,
    duration: Duration = 15.0,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            min=0.0,
            help="Accesses a second that each node makes; 0: as fast as it can.",
            show_default=f"{DIRECT_RATE:g}; {ROAD_RATE:g} with --writes outbox or cdc",
        ),
    ] = None,
    write_ratio: WriteRatio = 0.01,
    l1_entries: L1Entries = 10_000,
    bound: Bound = 2.0,
    ttl: Ttl = 5.0,
    seed: Seed = 1,
    redis_url: RedisUrl = None,
    cut: Cut = True,
    compare: Compare = True,
    bus: Annotated[
        BusChoice, typer.Option("--bus", help="What carries invalidations; kafka: a Kafka is started for it.")
    ] = BusChoice.REDIS,
    writes: Annotated[
        WritePath,
        typer.Option(
            "--writes",
            help="How the caches hear of a write: direct from its writer; or by workers behind a PostgreSQL that is "
            "started for it, which follow an outbox in it, or its log (cdc). One of them is killed on the way.",
        ),
    ] = WritePath.DIRECT,
    json: AsJson = False,
) -> None:
    """See it work: a shop's catalogue behind cachebus, under load, with a broken network half way.

    Starts a server, a catalogue (SQLite; PostgreSQL where workers follow it) and node processes that read through the
    cache while writers change the catalogue. Half way, one node's connections hang. In the end every read is checked
    against the history of all writes, and the same load is run on a plain dict with a TTL in each node, to show what
    cachebus is for.

    Takes about 40 seconds; leaves nothing behind. Exit status: 0, 1 if a promise broke, 2 if it could not start.
    """
    from cachebus.cli.performance import perform
    from cachebus.tools.demo.plan import DemoPlan

    if rate is None:
        rate = DIRECT_RATE if writes is WritePath.DIRECT else ROAD_RATE
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
        cut=cut,
        compare=compare,
        bus=bus.value,
        writes=writes.value,
    )
    raise typer.Exit(perform(plan, json=json))
