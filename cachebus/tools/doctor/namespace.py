"""Checks of the namespace in L2: its layout, epochs, log and marks, and its nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from cachebus.assembly.backends import places_of
from cachebus.core.ports import PROTOCOL, TOPIC, NodeRow
from cachebus.l2.names import ShardNames
from cachebus.l2.replies import NAME, buckets_of, node_row
from cachebus.settings import SHARDS_MAX, Settings
from cachebus.tools.doctor.cluster import shards_named
from cachebus.tools.doctor.facts import Asker, Facts, ShardFacts, texts, whole
from cachebus.tools.doctor.finding import G1, Finding, Level, ok, unknown

NEARLY_ALL: Final = 0.8
_SHARDS = re.compile(r"\bshards=(\d+)").search


async def shards_of(asker: Asker, settings: Settings, which: Sequence[int] | None = None) -> list[ShardFacts]:
    """The facts of these shards; None for all, as many as the namespace's meta says."""
    if which is None:
        which = range(await shard_count(asker, settings))
    return [await _shard(asker, settings, index) for index in which]


async def shard_count(asker: Asker, settings: Settings) -> int:
    """How many shards the namespace has, by its meta, else by the settings."""
    facts, _ = await asker.ask("HMGET", ShardNames(settings.namespace, 0).meta, "facts")
    stated = _SHARDS(facts[0].decode(errors="replace")) if facts and facts[0] else None
    return max(1, min(SHARDS_MAX, int(stated[1]))) if stated else settings.shards


async def _shard(asker: Asker, settings: Settings, index: int) -> ShardFacts:
    names = ShardNames(settings.namespace, index, places_of(settings).template.db)
    flat, refused = await asker.ask("HGETALL", names.meta)
    if refused:
        return ShardFacts(index, {}, refused)
    told = texts(flat)
    packed, _ = await asker.ask("HGETALL", names.buckets)
    buckets = buckets_of(packed or ())
    counts = [(await asker.ask("ZCARD", names.marks(bucket)))[0] for bucket, its in buckets.items() if its.members]
    oldest, _ = await asker.ask("XRANGE", names.log, "-", "+", "COUNT", 1)
    # Only what a node's own user may do: no XLEN, no XREVRANGE. The latest event bears the present seq.
    newest, _ = await asker.ask("XRANGE", names.log, f"{told.get('seq', '0')}-0", "+", "COUNT", 1)
    rows, _ = await asker.ask("HGETALL", names.nodes)
    heard, _ = await asker.ask("PUBSUB", "NUMSUB", names.channel)
    sharded, _ = await asker.ask("PUBSUB", "SHARDNUMSUB", names.channel)  # as in a Cluster; unknown before 7.0
    clock, _ = await asker.ask("TIME")
    return ShardFacts(
        index,
        told,
        invalidated_scopes=None if None in counts else sum(counts),
        buckets=buckets,
        log_first=_seq(oldest),
        log_last=_seq(newest),
        nodes=_rows(rows or ()),
        subscribers=heard[1] + (sharded[1] if sharded else 0) if heard else None,
        now_us=int(clock[0]) * 1_000_000 + int(clock[1]) if clock else 0,
    )


def _rows(flat: Sequence[bytes]) -> dict[str, NodeRow]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {node.decode(errors="replace"): node_row(row) for node, row in pairs if node != NAME}


def _seq(entries: list[list[bytes]] | None) -> int | None:
    """The seq of the first entry; 0 if there is none, None if it is not known."""
    if entries is None:
        return None
    return whole(entries[0][0].decode(errors="replace").partition("-")[0]) if entries else 0


async def other_databases(asker: Asker, info: dict[str, str], settings: Settings, own: int) -> list[int]:
    """Other databases of this server that hold the same namespace."""
    meta = ShardNames(settings.namespace, 0).meta
    found = []
    for name in info:
        if not name.startswith("db") or not name[2:].isdecimal() or int(name[2:]) == own:
            continue
        _, refused = await asker.ask("SELECT", name[2:])
        there, _ = (None, "") if refused else await asker.ask("EXISTS", meta)
        if there:
            found.append(int(name[2:]))
    await asker.ask("SELECT", own)
    return found


def _remedy(said: str, settings: Settings) -> str:
    """How settings are made to agree with what a namespace is laid out as, and "or"; "" where they can't be."""
    stated = dict(re.findall(r"(\w+)=(\w+)", said))
    if stated.get("protocol") not in (None, str(PROTOCOL)):
        return f"run the version of cachebus that has protocol {stated['protocol']}, or "
    ours = {"shards": str(settings.shards), "bus": settings.bus}
    wanted = [
        f"CACHEBUS_{name.upper()}={stated[name]}" for name in ours if stated.get(name, "0") not in ("0", ours[name])
    ]
    return f"set {' and '.join(wanted)} for every node, or " if wanted else ""


def layout(facts: Facts) -> Iterator[Finding]:
    """Check that nodes with these settings may join, and that the history is this server's."""
    space, settings = f"namespace {facts.settings.namespace}", facts.settings
    ours = f"protocol={PROTOCOL} shards={settings.shards} bus={settings.bus}"
    unread: dict[str, list[int]] = {}
    others: dict[str, list[int]] = {}
    for shard in facts.shards:
        if shard.refused:
            unread.setdefault(shard.refused, []).append(shard.index)
        elif shard.meta and shard.meta.get("facts", "") != ours:
            others.setdefault(shard.meta.get("facts", ""), []).append(shard.index)
    for why, which in unread.items():
        yield unknown("namespace", f"{space}, {shards_named(which)}: {why}")
    for said, which in others.items():
        yield Finding(
            "namespace",
            Level.PROBLEM,
            f"{space} is laid out as {said!r} in {shards_named(which)}, these settings say {ours!r}",
            "Nodes with these settings refuse to start (ProtocolMismatch).",
            otherwise=f"{_remedy(said, settings)}set CACHEBUS_NAMESPACE to another name",
        )
    if unread or others:
        return
    if not any(shard.meta for shard in facts.shards):
        yield ok("namespace", f"{space}: no node has been here yet, or its meta was lost")
        return
    epochs = ", ".join(f"{s.meta.get('epoch', '?')}.{s.meta.get('seq', '?')}" for s in facts.shards[:4])
    yield ok("namespace", f"{space}: {ours}; epoch and seq {epochs}{' ...' if len(facts.shards) > 4 else ''}")
    due = [s for s in facts.shards if _is_due(s, facts)]
    if due:
        yield Finding(
            "takeover",
            Level.ADVICE,
            f"{len(due)} of {len(facts.shards)} shards will begin a new epoch with the next operation",
            "The server was restarted or failed over, or marks were lost: every node drops its memory once. No command "
            "mends it, and none is needed: any node or producer does it by its next operation.",
            otherwise=f"cachebus invalidate --namespace {facts.settings.namespace} --all-tenants TYPE does it in all",
        )


def _is_due(shard: ShardFacts, facts: Facts) -> bool:
    replid = facts.server.info.get("master_replid")
    if not shard.meta:
        return False
    moved = replid is not None and shard.meta.get("server") != replid
    lost = "marks" in shard.meta and not shard.buckets
    counted = sum(bucket.members for bucket in shard.buckets.values())
    return moved or lost or (shard.invalidated_scopes is not None and counted != shard.invalidated_scopes)


def databases(facts: Facts) -> Iterator[Finding]:
    """Check whether another database of the server holds the same namespace."""
    if facts.other_databases:
        others = ", ".join(map(str, facts.other_databases))
        yield Finding(
            "databases",
            Level.ADVICE,
            f"namespace {facts.settings.namespace} lies in database {others} too",
            "They disturb each other in nothing, and share nothing: an invalidation in one does not reach the other.",
            otherwise="if they are meant to be one, give all nodes the same number behind the / of CACHEBUS_URL",
        )


def invalidated_scopes(facts: Facts) -> Iterator[Finding]:
    """Check how many invalidated scopes and tags are remembered, of the most that may be."""
    counts = [s.invalidated_scopes for s in facts.shards if s.invalidated_scopes is not None]
    if not counts:
        return
    most = facts.settings.max_invalidated_scopes
    trimmed = sum(whole(s.meta.get("trimmed")) or 0 for s in facts.shards)
    buckets = sum(bucket.low > 0 for s in facts.shards for bucket in s.buckets.values())
    said = f"at most {max(counts):,} of {most:,} scopes in a shard; {trimmed:,} were forgotten, in {buckets} buckets"
    if max(counts) > NEARLY_ALL * most or trimmed:
        yield Finding(
            "invalidated_scopes",
            Level.ADVICE,
            said,
            "Past the limit the bucket of tenants that has most marks loses its oldest. What those tenants had stored "
            "before is not believed any more: more loads for them, nothing stale, nothing lost to others.",
            otherwise=f"set CACHEBUS_MAX_INVALIDATED_SCOPES={2 * most} for every node, if that happens often; some 150 "
            "bytes each",
        )
    else:
        yield ok("invalidated_scopes", said)


def log(facts: Facts) -> Iterator[Finding]:
    """Check how far back a node that was away can catch up."""
    # A shard whose epoch has just begun has no log yet, and no marks.
    lost = [s.index for s in facts.shards if s.log_last == 0 and s.meta and (s.log_first or s.invalidated_scopes)]
    kept = [s.log_last - s.log_first + 1 for s in facts.shards if s.log_first and s.log_last]
    if lost:
        yield Finding(
            "log",
            Level.ADVICE,
            f"in shard {lost[0]} the log lacks the latest events: it was evicted or deleted",
            "Nodes that miss an event now drop that shard's memory instead of catching up. The next event mends it.",
        )
    elif kept:
        yield ok("log", f"keeps the last {min(kept):,} to {max(kept):,} events of a shard, for nodes that missed them")


def nodes(facts: Facts) -> Iterator[Finding]:
    """Check which nodes are alive, and how far behind they are."""
    settings = facts.settings
    alive: dict[str, int] = {}
    gone: set[str] = set()
    deaf = 0
    for shard in facts.shards:
        present = 0
        for node in nodes_of(shard):
            if node.alive:
                alive[node.name] = max(alive.get(node.name, 0), node.behind)
                present += 1
            else:
                gone.add(node.name)
        deaf = max(deaf, present - (present if shard.subscribers is None else shard.subscribers))
    if not alive:
        if not gone:
            yield ok("nodes", "none is alive")
            return
        yield Finding(
            "nodes",
            Level.ADVICE,
            f"none is alive; {len(gone)} have not left, and are silent: {min(gone)}"
            + (f" and {len(gone) - 1} others" if len(gone) > 1 else ""),
            "They have ended without closing, hang, or can't reach this server or write to it: then their reads go to "
            "the source.",
            otherwise="look at their health and logs; for one that is gone for good, `cachebus nodes forget NAME`",
        )
        return
    worst = max(alive, key=alive.__getitem__)
    said = f"{len(alive)} alive, {len(gone - alive.keys())} silent; furthest behind {worst}, by {alive[worst]:,} events"
    kept = min((s.log_last - s.log_first + 1 for s in facts.shards if s.log_first and s.log_last), default=0)
    if alive[worst] > max(1000, kept):
        yield Finding(
            "nodes",
            Level.ADVICE,
            said,
            "It is further behind than the log reaches back, so it will drop its memory. Its lease does not reach "
            "further than what it has applied: nothing stale is served.",
            otherwise=f"set CACHEBUS_LOG_MAX_LEN={2 * settings.log_max_len}, or look at that node's event loop",
        )
    else:
        yield ok("nodes", said)
    if deaf > 0 and settings.bus == "redis":
        yield Finding(
            "subscriptions",
            Level.ADVICE,
            f"{deaf} nodes that are alive listen to no channel",
            "They hear of invalidations by their probes only: within the bound, but not within milliseconds.",
            (G1,),
            otherwise="look at their logs for the bus being out of reach, and at this user's channel permissions",
        )


def ahead(facts: Facts) -> Iterator[Finding]:
    """Check for rows with a time that the server's clock has not reached. A living node rewrites its own row."""
    later = {node.name: node.ahead_s for shard in facts.shards for node in nodes_of(shard) if not node.told_in_time}
    if later:
        names = sorted(later)
        yield Finding(
            "nodes ahead",
            Level.ADVICE,
            f"{len(names)} lines are of a time to come: {', '.join(names[:4])}, by {max(later.values()):,.0f} s",
            "The server's clock was set back, or another server with a slower one has taken over. Whether these nodes "
            "live their lines do not tell until then, and each wait for the nodes lasts the whole bound.",
            otherwise=f"if they do not live: cachebus nodes forget {names[0]}",
        )


class Present:
    """One node, by its row in a shard."""

    __slots__ = (
        "ahead_s",
        "applied",
        "behind",
        "bound_s",
        "guard_max_s",
        "keeps_without_l2",
        "name",
        "silent_s",
        "topic",
    )

    def __init__(self, name: str, row: NodeRow, shard: ShardFacts) -> None:
        self.name = name
        self.applied = row.applied if row.epoch.decode() == shard.meta.get("epoch") else 0
        silent_s = (shard.now_us - row.at_us) / 1e6
        self.silent_s = max(0.0, silent_s)
        self.ahead_s = max(0.0, -silent_s)
        self.behind = max(0, (whole(shard.meta.get("seq")) or 0) - self.applied)
        self.bound_s, self.guard_max_s = row.about.bound_ms / 1000, row.about.guard_ms / 1000
        self.keeps_without_l2 = row.about.keeps_without_l2
        topic = dict(row.about.more).get(TOPIC)
        self.topic = topic if isinstance(topic, str) else None

    @property
    def told_in_time(self) -> bool:
        """Whether the row's time is not in the future."""
        return self.ahead_s <= self.bound_s

    @property
    def alive(self) -> bool:
        """Whether the node has written its row within its bound."""
        return self.told_in_time and self.silent_s <= self.bound_s


def nodes_of(shard: ShardFacts) -> list[Present]:
    """The nodes of a shard, by name."""
    return [Present(name, row, shard) for name, row in sorted(shard.nodes.items())]


def bounds(facts: Facts) -> Iterator[Finding]:
    """Check that all nodes have the same staleness bound and longest guard, and agree on what they keep without L2."""
    there = [node for shard in facts.shards for node in nodes_of(shard)]
    for what, variable, values in (
        ("staleness bound", "CACHEBUS_STALENESS_BOUND_S", {node.bound_s for node in there}),
        ("longest guard", "CACHEBUS_GUARD_MAX_S", {node.guard_max_s for node in there}),
    ):
        if len(values) > 1:
            several = ", ".join(f"{value:g} s" for value in sorted(values))
            yield Finding(
                what.split()[-1] + "s",
                Level.ADVICE,
                f"the nodes' {what} differs: {several}",
                "Each keeps its own promise. Waits for the nodes last as the largest that was ever there, and so long "
                "records are short-lived after a takeover.",
                otherwise=f"set the same {variable} for every node",
            )
    if len({node.keeps_without_l2 for node in there}) > 1:
        yield Finding(
            "keep_without_l2",
            Level.ADVICE,
            "some nodes keep what they load without L2, and some do not",
            "Waits for the nodes go by those that do: for a minute after lines were lost each lasts the whole bound.",
            otherwise="set the same CACHEBUS_KEEP_WITHOUT_L2 for every node",
        )


def topics(facts: Facts) -> Iterator[Finding]:
    """Check that all nodes that live, and these settings, mean one topic of Kafka."""
    by_topic: dict[str, set[str]] = {}
    for node in (node for shard in facts.shards for node in nodes_of(shard)):
        if node.alive and node.topic is not None:
            by_topic.setdefault(node.topic, set()).add(node.name)
    if facts.settings.bus == "kafka" and by_topic:
        by_topic.setdefault(facts.settings.kafka_topic, set()).add("these settings")
    if len(by_topic) > 1:
        several = "; ".join(f"{topic}: {', '.join(sorted(names)[:4])}" for topic, names in sorted(by_topic.items()))
        yield Finding(
            "topics",
            Level.ADVICE,
            f"events go by {len(by_topic)} topics of Kafka: {several}",
            "Nodes of one hear of the others' invalidations by their probes only: within the bound, but not within "
            "milliseconds.",
            (G1,),
            otherwise="set the same CACHEBUS_KAFKA_TOPIC for every node, producer and worker of the namespace",
        )
