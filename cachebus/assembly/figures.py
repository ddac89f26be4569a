"""How a cache stands: what it has counted, and whether it is ready."""

from __future__ import annotations

from typing import Final

from cachebus.assembly.factory import Parts
from cachebus.base.providers import trouble_of
from cachebus.base.tls import tls_troubles
from cachebus.listening.outages import Backend, by_reason, shards_of
from cachebus.observe import Health, Stats
from cachebus.settings import Settings

COSTS: Final[dict[Backend, str]] = {
    "L2": "reads go to the source, and invalidations are refused or wait",
    "bus": "events are found by probes, within the staleness bound",
}
PROVIDERS: Final = {
    "credential_provider": ("logins", "connections end when the server ends what they came in with"),
    "sentinel_credential_provider": ("logins to Sentinels", "who connects anew is not told where the primary is"),
    "kafka_sasl_oauth_token_provider": (
        "tokens for Kafka",
        "connections end when their tokens expire, and then events are found by probes, within the staleness bound",
    ),
}
"""By the setting that names one: what it gives, and what follows where it gives nothing."""
OFF: Final = (
    "this cache is off (enabled=False, CACHEBUS_ENABLED): each read asks the source, and other nodes are not told of "
    "its writes, so that they serve what these replace until it expires"
)

HEARTBEAT_ENDED: Final = (
    "the heartbeat has ended, as somebody has cancelled a task of it: leases are not renewed, nothing connects again; "
    "close this cache and open it anew"
)


def is_ready(parts: Parts) -> bool:
    """Whether any shard's lease is live, and that of every other one too but for those known to be out of reach."""
    if not parts.settings.enabled:
        return True
    now_s = parts.node.clock()
    live = [now_s < shard.valid_until_s for shard in parts.node.shards]
    return any(live) and all(live[i] or parts.listening.outages.lacks(i) for i in range(len(live)))


def health_of(parts: Parts) -> Health:
    """What a cache does for its callers now, and what it does not, in words."""
    node, outages = parts.node, parts.listening.outages
    if not parts.settings.enabled:
        return Health(serving=True, coherent=True, degraded=(OFF,))
    now_s = node.clock()
    lapsed = {shard.index for shard in node.shards if now_s >= shard.valid_until_s}
    refusing, ended = outages.refusing, parts.listening.heartbeat.has_ended
    serving = not parts.home.is_stopped and not ended and len(refusing & lapsed) < len(node.shards)
    coherent, degraded = serving and not lapsed, outages.refusals()
    if parts.home.is_stopped:
        how = "has ended, and with it this cache:" if parts.home.gone else "is stopped, and until it runs"
        degraded.append(f"the event loop that opened this cache {how} nothing is answered")
    elif ended:
        degraded.append(HEARTBEAT_ENDED)
    lapsed -= refusing
    degraded += _connection_troubles(parts)
    for part, cost in COSTS.items():
        for why, shards in outages.reasons(part).items():
            degraded.append(f"{part} is out of reach for {shards_of(len(shards), len(node.shards))}: {why}: {cost}")
            lapsed -= set(shards) if part == "L2" else set()
    lapsed = {shard for shard in lapsed if parts.store.reaches(shard)}
    degraded += _bus_troubles(parts) if not parts.home.is_stopped else []
    if lapsed:
        degraded.append(
            f"the leases of {shards_of(len(lapsed), len(node.shards))} have lapsed: L2 is asked at each read"
        )
    degraded += parts.reader.refusals.lately()
    degraded += parts.reader.unreadable.lately()
    degraded += _login_troubles(parts.settings)
    if parts.listening.peers.trouble:
        degraded.append(parts.listening.peers.trouble)
    degraded += [
        f"TLS: {why}: connections have what it held before, and no new process can begin" for why in tls_troubles()
    ]
    if waiting := parts.writing.pending.depth:
        several = "1 invalidation waits" if waiting == 1 else f"{waiting} invalidations wait"
        degraded.append(f"{several} for L2: what is replaced may be read on other nodes until then")
    return Health(serving=serving, coherent=coherent, degraded=tuple(degraded))


def _login_troubles(settings: Settings) -> list[str]:
    """What those who give credentials and tokens do not give. Connections that are there go on meanwhile."""
    found = []
    for field, (what, cost) in PROVIDERS.items():
        provider = getattr(settings, field)
        if provider is not None and (trouble := trouble_of(provider)):
            found.append(f"{what} are not renewed {trouble}: {cost}")
    return found


def _connection_troubles(parts: Parts) -> list[str]:
    """What is wrong with the connections to L2 and of the bus, beside what failed probes have shown."""
    reported = {shard for shards in parts.listening.outages.reasons("L2").values() for shard in shards}
    shards = range(len(parts.node.shards))
    lost = sum(not parts.store.reaches(shard) for shard in shards if shard not in reported)
    said = [f"L2 is not connected for {shards_of(lost, len(shards))}: until it is, {COSTS['L2']}"] if lost else []
    if why := parts.store.losses.trouble:
        said.append(f"L2: {why}: calls under way then fail, and so do those until there is another one")
    if why := parts.bus.losses.trouble:
        said.append(f"bus: {why}: until there is another one, {COSTS['bus']}")
    return said


def _bus_troubles(parts: Parts) -> list[str]:
    """What the bus itself knows, of the shards that are not reported as out of reach."""
    reported = {shard for shards in parts.listening.outages.reasons("bus").values() for shard in shards}
    count = len(parts.node.shards)
    found = {shard: why for shard in range(count) if shard not in reported and (why := parts.bus.trouble(shard))}
    return [
        f"bus does not carry all events of {shards_of(len(shards), count)}: {why}: {COSTS['bus']}"
        for why, shards in by_reason(found).items()
    ]


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
        l2_connected=parts.store.connected and not parts.home.is_stopped,
        bus_connected=parts.bus.connected and not parts.home.is_stopped,
        flights=len(parts.loads.flights),
        warming=parts.listening.warm_up.under_way,
        pending=parts.writing.pending.depth,
        reconnects=parts.listening.attachment.reconnects,
        shards_refused=len(parts.listening.outages.refusing),
        loose_replicas=max(parts.listening.fleet.loose_replicas),
        nodes_elsewhere=parts.listening.peers.count,
        load_latency=counters.load_latency.snapshot(),
        l2_latency=counters.l2_latency.snapshot(),
        bus_lag=counters.bus_lag.snapshot(),
        **counts,
    )
