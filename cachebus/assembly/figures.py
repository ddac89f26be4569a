"""How a cache stands: what it has counted, and whether it is ready."""

from __future__ import annotations

from typing import Final

from cachebus.assembly.factory import Parts
from cachebus.listening.outages import Backend
from cachebus.observe import Health, Stats

COSTS: Final[dict[Backend, str]] = {
    "L2": "reads go to the source, and invalidations are refused or wait",
    "bus": "events are found by probes, within the staleness bound",
}


def is_ready(parts: Parts) -> bool:
    """Whether any shard's lease is live, and that of every other one too but for those known to be out of reach."""
    if not parts.settings.enabled:
        return True
    now_s = parts.node.clock()
    live = [now_s < shard.valid_until for shard in parts.node.shards]
    return any(live) and all(live[i] or parts.listening.outages.lacks(i) for i in range(len(live)))


def health_of(parts: Parts) -> Health:
    """What a cache does for its callers now, and what it does not, in words."""
    node, outages = parts.node, parts.listening.outages
    if not parts.settings.enabled:
        return Health(serving=True, coherent=True)
    now_s = node.clock()
    lapsed = {shard.index for shard in node.shards if now_s >= shard.valid_until}
    serving = not parts.home.gone
    coherent, degraded = serving and not lapsed, []
    for part, cost in COSTS.items():
        for why, shards in outages.reasons(part).items():
            degraded.append(f"{part} is out of reach for {_shards(len(shards), len(node.shards))}: {why}: {cost}")
            lapsed -= set(shards) if part == "L2" else set()
    if lapsed:
        degraded.append(f"the leases of {_shards(len(lapsed), len(node.shards))} have lapsed: L2 is asked at each read")
    if parts.listening.topics.trouble:
        degraded.append(parts.listening.topics.trouble)
    if waiting := parts.writing.pending.depth:
        several = "1 invalidation waits" if waiting == 1 else f"{waiting} invalidations wait"
        degraded.append(f"{several} for L2: what is replaced may be read on other nodes until then")
    return Health(serving=serving, coherent=coherent, degraded=tuple(degraded))


def _shards(count: int, of: int) -> str:
    return "all shards" if count == of else f"{count} of {of} shards"


def figures(parts: Parts) -> Stats:
    """All counters, and how things stand now."""
    node, counters = parts.node, parts.node.counters
    hits = node.groups.hits()
    types = {t: counters.of(t).snapshot(hits.get(t, 0)) for t in sorted({*counters.types, *hits})}
    counts = {
        name: getattr(counters, name)
        for name in Stats.__dataclass_fields__
        if isinstance(getattr(counters, name, None), int)
    }
    return Stats(
        node=node.id,
        types=types,
        shards=node.shard_stats(node.clock()),
        l1_entries=len(node.l1),
        l1_bytes=node.l1.bytes,
        l1_evictions=node.l1.evictions,
        flushes=dict(counters.flushes),
        l2_connected=parts.store.connected,
        bus_connected=parts.bus.connected,
        flights=len(parts.loads.flights),
        pending=parts.writing.pending.depth,
        reconnects=parts.listening.attachment.reconnects,
        loose_replicas=max(parts.listening.fleet.loose_replicas),
        nodes_elsewhere=parts.listening.topics.count,
        load_latency=counters.load_latency.snapshot(),
        l2_latency=counters.l2_latency.snapshot(),
        bus_lag=counters.bus_lag.snapshot(),
        **counts,
    )
