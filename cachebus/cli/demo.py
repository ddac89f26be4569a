"""`cachebus demo`."""

from __future__ import annotations

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


def demo(
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
    """See it work: a shop's catalogue behind cachebus, under load, with a broken network half way.

    Starts a server, a SQLite catalogue and node processes that read through the cache while writers change the
    catalogue. Half way, one node's connections hang. In the end every read is checked against the history of all
    writes, and the same load is run on a plain dict with a TTL in each node, to show what cachebus is for.

    Takes about 40 seconds; leaves nothing behind. Exit status: 0, 1 if a promise broke, 2 if it could not start.
    """
    from cachebus.cli.lab.plan import Plan
    from cachebus.cli.performance import perform

    plan = Plan(
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
    )
    raise typer.Exit(perform(plan, json=json))
