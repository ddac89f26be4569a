"""How a cache stands: what it has counted, and whether it is ready."""

from __future__ import annotations

from cachebus.assembly.factory import Parts
from cachebus.observe import Stats


def is_ready(parts: Parts) -> bool:
    """Whether any shard's lease is live, and that of every other one too but for those known to be out of reach."""
    if not parts.settings.enabled:
        return True
    now_s = parts.node.clock()
    live = [now_s < shard.valid_until for shard in parts.node.shards]
    return any(live) and all(live[i] or parts.listening.outages.lacks(i) for i in range(len(live)))


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
        load_latency=counters.load_latency.snapshot(),
        l2_latency=counters.l2_latency.snapshot(),
        bus_lag=counters.bus_lag.snapshot(),
        **counts,
    )
