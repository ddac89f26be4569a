"""The figures of a cache at one moment, as `cache.stats()` gives them. All counts are since the cache was opened."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Health:
    """What a cache does for its callers now, as `cache.health()` gives it."""

    serving: bool
    """Whether reads are answered: from memory, from L2, or from the source. True without L2, too, and so what a
    readiness probe should ask: a fleet that leaves service while Redis restarts makes an outage of a delay. False once
    its event loop has ended or while it is stopped, and where all of L2 is laid out for nodes of other settings: each
    call raises `ProtocolMismatch` then."""
    coherent: bool
    """Whether the lease of every shard is live: memory answers, within the staleness bound. Where it is not, L2 or the
    source is asked instead. A cache that is off needs no lease: the source answers."""
    degraded: tuple[str, ...] = ()
    """What is not as it should be, why, and what that costs, for people: the words may change. Empty where all is
    well."""


@dataclass(frozen=True, slots=True)
class LatencyStats:
    """A histogram: `buckets[i]` observations took at most `bounds_s[i]` seconds (not cumulative; the last is +inf)."""

    count: int
    """How many observations there are."""
    total_s: float
    """Their sum in seconds."""
    bounds_s: tuple[float, ...]
    """The upper bound of each bucket in seconds."""
    buckets: tuple[int, ...]
    """How many observations each bucket holds."""

    @property
    def mean_s(self) -> float:
        """The mean of all observations, in seconds; 0.0 when there are none."""
        return self.total_s / self.count if self.count else 0.0

    def quantile_s(self, q: float) -> float:
        """The upper bound, in seconds, of the bucket that holds quantile `q` (0–1); 0.0 when there are none."""
        rank, seen = q * self.count, 0
        for bound_s, bucket in zip(self.bounds_s, self.buckets, strict=True):
            seen += bucket
            if bucket and seen >= rank:
                return bound_s
        return 0.0


@dataclass(frozen=True, slots=True)
class TypeStats:
    """What was asked for one data type, and how it was answered."""

    l1_hits: int = 0
    """Reads that this node's memory answered."""
    l2_hits: int = 0
    """Reads that L2 answered."""
    misses: int = 0
    """Reads that neither level could answer."""
    loads: int = 0
    """Loads from the source that were begun."""
    load_errors: int = 0
    """Loads that failed after their retries."""
    not_found: int = 0
    """Loads, or cached answers, that said the source has nothing."""
    not_modified: int = 0
    """Loads whose source said that the old value is still right."""
    fallbacks: int = 0
    """Expired (never invalidated) values served because the source failed or was slow."""
    refreshes: int = 0
    """Loads begun in the background before a value expired."""
    serialization_errors: int = 0
    """Values that could not be encoded, and payloads that could not be decoded."""


@dataclass(frozen=True, slots=True)
class ShardStats:
    """One shard as this node sees it."""

    shard: int
    """Its number, from 0."""
    epoch: str
    """The life of its history; "" before L2 was first reached."""
    applied: int
    """How far events have been applied without a gap."""
    head: int
    """The highest seq heard of; `head - applied` is the gap."""
    lease_left_s: float
    """For how long this node may serve its memory; 0.0 when the lease has lapsed."""
    invalidated_scopes: int
    """Scopes and tags whose last invalidation is remembered."""
    bound_s: float = 0.0
    """The largest staleness bound that any node of the fleet has had: so long a wait for the nodes may last."""

    @property
    def gap(self) -> int:
        """Events known of and not yet applied in order."""
        return self.head - self.applied


@dataclass(frozen=True, slots=True)
class Stats:
    """Everything that a cache counts, as `cache.stats()` gives it. Counts are since the cache was opened."""

    node: str
    """This node's id, unique in the fleet."""
    types: dict[str, TypeStats]
    """By data type; beyond 1 024 of them those without a policy are one, "(other)"."""
    shards: tuple[ShardStats, ...]
    """Every shard, in order."""
    l1_entries: int
    """Entries in memory now."""
    l1_bytes: int
    """Their estimated size in bytes."""
    l1_evictions: int
    """Entries that left memory for want of room."""
    events_applied: int
    """Invalidations taken in, from the bus, the log, or this node's own writes."""
    events_repeated: int
    """Events that came again, or that the log had brought already."""
    events_foreign: int
    """Events of another epoch: one that this node has left, another store's, or one that has just begun."""
    messages_unknown: int
    """Messages of a kind that this version does not know."""
    watermarks_raised: int
    """Times L2 had too many scopes and tags to remember, and forgot some of a bucket of tenants: what those tenants had
    stored before is not believed any more."""
    lost_to_watermarks: int
    """Values that this node found not to be believed for that reason alone."""
    events_corrupt: int
    """Messages and log entries that were no events."""
    events_unsigned: int
    """Messages that were passed over, since none of this node's keys had signed them (Kafka)."""
    events_flushed: int
    """Events that were never seen, because the log no longer had them: all of L1 was dropped instead."""
    gaps: int
    """Times an event arrived before an earlier one."""
    catch_ups: int
    """Times that missing events were read from the log."""
    flushes: dict[str, int]
    """Times all of a shard's L1 was dropped, by cause: epoch, gap, start."""
    lease_lapses: int
    """Times a shard's lease had run out when L2 answered again. Meanwhile its `lease_left_s` is 0."""
    fills: int
    """Loaded values that L2 stored."""
    fills_rejected: int
    """Loaded values that L2 refused, since something replaced them meanwhile, or their lease was gone."""
    entries_refused: int
    """Values that did not enter L1, for the same reason on this node."""
    invalidations: int
    """Invalidations that this node asked of L2."""
    invalidations_failed: int
    """Those of them that are not sure to have happened: the call raised."""
    invalidations_repeated: int
    """Invalidations repeated in an epoch of L2 that had begun before they were called: whatever acknowledged them had
    been deposed."""
    resend_dropped: int
    """Invalidations that left the resend buffer before their minute was over, for want of room (`resend_max_bytes`): a
    failover that loses them is not made up for."""
    guards: int
    """Write guards put up."""
    guards_left: int
    """Those of them that were left to their time-out, by an exception in their block, a long one, or an end that did
    not reach L2."""
    guards_lost: int
    """Those of them that were lost with their epoch while they stood: by a failover, a restart, a backup."""
    guarded_loads: int
    """Loads whose value nobody could keep, for somebody's guard."""
    pending: int
    """Invalidations that wait for L2 now."""
    pending_delivered: int
    """Invalidations that waited for L2, and were delivered."""
    pending_lost: int
    """Invalidations that waited for L2 until this cache was closed."""
    hook_events_dropped: int
    """Events that no hook was told, since too many waited already, or the cache was closed."""
    hook_failures: int
    """Times a callback of a hook has raised, or taken longer than its time."""
    records_corrupt: int
    """Records in L2 that were damaged, or answered for another key; each was a miss."""
    records_of_other_versions: int
    """Times a record in L2 was a miss since it was stored by another version of its type's policy: in order while a
    release is rolled out."""
    records_not_decrypted: int
    """Times a record in L2 was a miss since it could not be decrypted here: by an unknown key, changed since it was
    stored, of another key or namespace; or not believed, as it was not encrypted."""
    l2_errors: int
    """Operations on L2 that failed or timed out, for callers. Probes that fail are not among them: they cost leases,
    see `lease_lapses`."""
    l2_connected: bool
    """Whether commands can be sent now."""
    shards_refused: int
    """Shards in L2 that are laid out for nodes of other settings now: what this node's memory can't answer
    of them raises `ProtocolMismatch`."""
    bus_publish_failures: int
    """Events that L2 has and the bus did not take (Kafka): nodes find them by their probes."""
    bus_positions_lost: int
    """Times the bus no longer had what comes next of a partition (Kafka), or was far ahead of it: this node went on at
    its end."""
    bus_connected: bool
    """Whether events can arrive now."""
    loose_replicas: int
    """The most replicas that a primary has, or had since this node began, whose min-replicas-to-write is 0: where
    there are any, a failover can lose what was acknowledged."""
    nodes_elsewhere: int
    """Nodes of the namespace that do not hear this one, or it them, as of the last minute's look: events go by another
    topic, or cluster, of Kafka, or are signed with another key."""
    reconnects: int
    """Connections to L2 or bus that were opened again after a loss."""
    flights: int
    """Loads under way now."""
    warmed: int
    """Values that were taken over from L2 by the names that another node has told (`warm_up`); no read counts them."""
    warming: bool
    """Whether that is still under way."""
    load_latency: LatencyStats = field(repr=False)
    """Loads from the source, their retries included."""
    l2_latency: LatencyStats = field(repr=False)
    """Scripts in L2, from question to answer."""
    bus_lag: LatencyStats = field(repr=False)
    """From an event's publication to its application on this node, on L2's clock (± half a round trip)."""

    def _sum(self, name: str) -> int:
        return sum(getattr(t, name) for t in self.types.values())

    @property
    def l1_hits(self) -> int:
        """Reads answered from this node's memory, of all types."""
        return self._sum("l1_hits")

    @property
    def l2_hits(self) -> int:
        """Reads answered from L2, of all types."""
        return self._sum("l2_hits")

    @property
    def misses(self) -> int:
        """Reads that neither level could answer, of all types."""
        return self._sum("misses")

    @property
    def loads(self) -> int:
        """Loads begun, of all types."""
        return self._sum("loads")

    @property
    def requests(self) -> int:
        """All reads."""
        return self.l1_hits + self.l2_hits + self.misses

    @property
    def hit_ratio(self) -> float:
        """Share of reads that L1 or L2 answered, 0–1; 0.0 when nothing was read."""
        return (self.l1_hits + self.l2_hits) / self.requests if self.requests else 0.0
