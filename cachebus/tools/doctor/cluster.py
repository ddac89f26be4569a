"""Checks of a Cluster: whether all slots are served, and what its nodes know of the replicas that they would
promote."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cachebus.l2.names import ShardNames
from cachebus.resp import CLUSTER, Address, slot_of
from cachebus.resp.cluster_map import SLOTS
from cachebus.settings import Settings
from cachebus.tools.doctor.facts import KnownReplica, Watched, asked, texts, whole
from cachebus.tools.doctor.finding import Finding, Level, config_set, ok, unknown
from cachebus.tools.doctor.sentinels import FAILOVER_MS, LEAST_FAILOVER_S, too_soon

LEAST_VOTERS: Final = 3
_AWAY = frozenset(("fail", "fail?", "handshake", "noaddr"))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of CLUSTER NODES."""

    id: str
    ip: str
    host: str
    """The name that it announces, "" for none."""
    port: int
    flags: frozenset[str]
    follows: str
    """The id of its primary; "-" for none."""
    has_slots: bool = False


def served(settings: Settings, known: Sequence[Address | None]) -> Iterator[Finding]:
    """Check that each shard's slot is served. `known`: where each shard lies."""
    lacking = [shard for shard, place in enumerate(known) if place is None]
    if not lacking:
        yield ok("slots", f"each of {len(known)} shards has a server, as the Cluster's slot map says")
        return
    slots = sorted(slot_of(ShardNames(settings.namespace, shard).meta) for shard in lacking)
    yield Finding(
        "slots",
        Level.PROBLEM,
        f"no server has the slots of {shards_named(lacking)}",
        f"Of the tenants that lie there ({len(lacking)} of {len(known)} shards) nothing is stored: their leases lapse, "
        "their reads go to the source, their invalidations raise. Where cluster-require-full-coverage is yes, the "
        "others are refused as well (CLUSTERDOWN).",
        otherwise=f"give them to a primary, by redis-cli --cluster fix HOST:PORT, or there by CLUSTER ADDSLOTS "
        f"{' '.join(map(str, slots))}",
    )


def unserved(watched: Iterable[Watched]) -> Iterator[Finding]:
    """Check that every slot is served: a Cluster with full coverage refuses all requests otherwise."""
    said = [set(each.unserved) for each in watched if each.known is not None]
    lacking = sorted(set.intersection(*said)) if said else []
    if lacking:
        shown = " ".join(map(str, lacking[:8]))
        yield Finding(
            "slots",
            Level.PROBLEM,
            f"no server has {f'slot {shown}' if len(lacking) == 1 else f'{len(lacking)} slots, as {shown}'}",
            "Where cluster-require-full-coverage is yes, as it is unless set, every server refuses everything "
            "(CLUSTERDOWN), whatever slots it has itself.",
            otherwise="give them to a primary, by redis-cli --cluster fix HOST:PORT"
            + (f", or there by CLUSTER ADDSLOTS {shown}" if len(lacking) <= 8 else ""),
        )


def failing_over(watched: Iterable[Watched]) -> Iterator[Finding]:
    """Check that a cut-off primary refuses writes before a replica is promoted."""
    said = list(watched)
    known = [each.failover_s for each in said if each.failover_s is not None]
    if not known:
        why = next((each.refused for each in said if each.refused), "nobody says")
        yield unknown("failover", why, "After how long a silence a replica is promoted (cluster-node-timeout).")
    elif min(known) < LEAST_FAILOVER_S:
        commands, conf = config_set(cluster_node_timeout=f"{FAILOVER_MS}")
        yield too_soon(
            f"cluster-node-timeout is {min(known) * 1000:.0f} ms", commands, conf, "every node of the Cluster"
        )

    yield from _voting(said)
    for each in said:
        if each.known and not any(replica.promotable for replica in each.known):
            commands, conf = config_set(cluster_replica_no_failover="no")
            yield Finding(
                "failover",
                Level.PROBLEM,
                f"no replica of a primary may be promoted: {', '.join(str(known.address) for known in each.known)}",
                "Each has cluster-replica-no-failover yes. When the primary dies, nothing takes its place: for its "
                "tenants L2 counts as lost until it is back.",
                mend=commands,
                conf=conf,
                at="the replicas that may be promoted",
            )


def _voting(said: Sequence[Watched]) -> Iterator[Finding]:
    """Check that a majority of primaries is left to vote for a replica when one dies, by what most of them say."""
    told = [each.voters for each in said if each.voters]
    if not told or not any(each.known for each in said):
        return
    voters = max(told, key=lambda each: (told.count(each), len(each)))
    there, most = sum(voters), len(voters) // 2 + 1
    if len(voters) < LEAST_VOTERS or there < most:
        few = f"only {len(voters)} primar{'y has' if len(voters) == 1 else 'ies have'} slots"
        yield Finding(
            "failover",
            Level.PROBLEM,
            few if there == len(voters) else f"{there} of {len(voters)} primaries are there, of those that have slots",
            f"A replica is promoted only by a majority of these, which is {most}: when one dies, nothing takes its "
            "place, and for its tenants L2 counts as lost until it is back. Where cluster-require-full-coverage is "
            "yes, for all others too.",
            otherwise="have three primaries or more (redis-cli --cluster add-node, then --cluster rebalance "
            "--cluster-use-empty-masters)"
            if there == len(voters)
            else "bring them back, or promote their replicas (there by CLUSTER FAILOVER TAKEOVER)",
        )


def shards_named(shards: Sequence[int]) -> str:
    """For people: "shard 3", "shards 3, 7"."""
    return f"shard{'s' if len(shards) > 1 else ''} {', '.join(map(str, shards))}"


def lines_of(text: str) -> list[Line]:
    """The parsed lines of CLUSTER NODES, without what can't be parsed."""
    return [line for words in map(str.split, text.splitlines()) if (line := _line(words)) is not None]


def _line(words: Sequence[str]) -> Line | None:
    if len(words) < 4:
        return None
    place, _, names = words[1].partition(",")
    ip, _, port = place.partition("@")[0].rpartition(":")
    return Line(
        words[0],
        ip,
        names.partition(",")[0],
        whole(port) or 0,
        frozenset(words[2].split(",")),
        words[3],
        any(not slots.startswith("[") for slots in words[8:]),
    )


def own_slots(text: str) -> list[range]:
    """The slots of the node that gave this text."""
    own = next((words for words in map(str.split, text.splitlines()) if "myself" in "".join(words[2:3])), [])
    ends = [part.partition("-") for part in own[8:] if not part.startswith("[")]  # in brackets: those that move
    return [range(int(first), int(last or first) + 1) for first, _, last in ends]


def lacking_in(text: str) -> list[int]:
    """The slots that no node has, by this text; none for an empty text."""
    parts = [part for words in map(str.split, text.splitlines()) for part in words[8:] if not part.startswith("[")]
    ends = [(int(first), int(last or first)) for first, _, last in (part.partition("-") for part in parts)]
    had = {slot for first, last in ends for slot in range(first, last + 1)}
    return [slot for slot in range(SLOTS) if slot not in had] if text else []


def replicas_in(lines: Sequence[Line], primary: Address) -> list[KnownReplica] | None:
    """The replicas of the node that has written these lines, which is at that address; None where it is not in them.

    By its id: in most Clusters all nodes have one port.
    """
    own = next((line for line in lines if "myself" in line.flags), None)
    if own is None:
        return None
    by_name = own.host == primary.host
    return [
        KnownReplica(
            replace(primary, host=(by_name and line.host) or line.ip or primary.host, port=line.port),
            away=", ".join(sorted(line.flags & _AWAY)),
            promotable="nofailover" not in line.flags,
            id=line.id,
            ip=line.ip,
        )
        for line in lines
        if line.follows == own.id
    ]


async def watched_in(primaries: Sequence[Address]) -> dict[Address, Watched]:
    """What each primary says of its replicas. The least time-out counts, since any primary may begin a failover."""
    said = await asyncio.gather(*map(_said, primaries))
    failover_s = min((each.failover_s for each in said if each.failover_s is not None), default=None)
    return {place: replace(each, failover_s=failover_s) for place, each in zip(primaries, said, strict=True)}


async def _said(primary: Address) -> Watched:
    question = ("CONFIG", "GET", "cluster-node-timeout")
    (text, refused), (flat, hidden) = await asked(primary, ("CLUSTER", "NODES"), question)
    told = (text or b"").decode(errors="replace")
    lines = lines_of(told)
    known = None if text is None else replicas_in(lines, primary)
    silent_ms = whole(texts(flat).get(question[-1]))
    voters = [not line.flags & _AWAY for line in lines if "master" in line.flags and line.has_slots]
    return Watched(
        CLUSTER, "", None if silent_ms is None else silent_ms / 1000, known, refused or hidden, voters, lacking_in(told)
    )
