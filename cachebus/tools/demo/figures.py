"""The figures of a run: what its nodes counted, and what the check of their history found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachebus.tools.demo.event_log import LoggedEvent, position_writes
from cachebus.tools.demo.history import APPLIED, READ, WRITE, Applied, DemoCheck, DemoWrite, log_path, records
from cachebus.tools.demo.incident import Incident
from cachebus.tools.demo.lag import Lags, Outage, lags
from cachebus.tools.harness.messages import Tick

WORKERS = 0
"""Stands for the workers among the numbers of nodes that wrote."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run. Counts over all nodes; shares 0-1; times in seconds."""

    took_s: float
    reads: int
    failed: int
    writes: int
    repeated: int
    l1_share: float
    l2_share: float
    loads: int
    loads_saved: float
    """The share of reads that did not load from the source."""
    checked: int
    """Reads that were checked against the history of all writes."""
    stale: int
    stale_beyond: int
    """Reads that began more than the bound after an invalidation had returned, and gave what it replaced."""
    oldest_s: float
    own_missed: int
    """Reads that missed a write of their own node."""
    lags: Lags
    lost: int = 0
    """Committed writes that were never invalidated."""


async def figures_of(
    directory: Path,
    ticks: Sequence[Tick],
    took_s: float,
    bound_s: float,
    incident: Incident | None,
    events: dict[str, list[LoggedEvent]] | None = None,
) -> Figures:
    """Read the nodes' history logs, and check every read. `events`: what workers have invalidated, where they did, and
    not the writing nodes."""
    nodes = [tick.node for tick in ticks]
    writes = {node: [DemoWrite(*r) for r in _all(directory, node, "writes")] for node in nodes}
    lost = 0
    if events is not None:  # no node's own writes: the writer learns of them as all others do
        writes[WORKERS], lost = position_writes((write for made in writes.values() for write in made), events)
        writes |= {node: [] for node in nodes}
    applied = {node: [Applied(*r) for r in _all(directory, node, "applied")] for node in nodes}
    total = DemoCheck((write for made in writes.values() for write in made), bound_s)
    own_missed = 0
    for node in nodes:
        own = DemoCheck(writes[node], bound_s)
        for batch in records(log_path(directory, node, "reads"), READ):
            total.add(batch)
            own.add(batch)
            await asyncio.sleep(0)  # so that Ctrl-C is heard
        own_missed += own.stale
    reads = sum(tick.reads for tick in ticks)
    loads = sum(tick.loads for tick in ticks)
    return Figures(
        took_s=took_s,
        reads=reads,
        failed=sum(tick.failed for tick in ticks),
        writes=sum(tick.writes for tick in ticks),
        repeated=sum(tick.repeated for tick in ticks),
        l1_share=sum(tick.l1_hits for tick in ticks) / max(1, reads),
        l2_share=sum(tick.l2_hits for tick in ticks) / max(1, reads),
        loads=loads,
        loads_saved=1 - loads / max(1, reads),
        checked=total.reads,
        stale=total.stale,
        stale_beyond=total.stale_beyond,
        oldest_s=total.oldest_s,
        own_missed=own_missed,
        lags=lags(writes, applied, _outage(incident)),
        lost=lost,
    )


def _all(directory: Path, node: int, kind: str) -> list[tuple[Any, ...]]:
    struct = WRITE if kind == "writes" else APPLIED
    return [record for batch in records(log_path(directory, node, kind), struct) for record in batch]


def _outage(incident: Incident | None) -> Outage | None:
    if incident is None or incident.began_s is None:
        return None
    until_s = float("inf") if incident.recovered_s is None else incident.recovered_s
    return Outage(incident.node, incident.began_s, until_s)
