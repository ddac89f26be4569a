"""Checks of a Cluster: whether all slots are served, and what its nodes know of the replicas that they would
promote."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cachebus.l2.names import ShardNames
from cachebus.resp import CLUSTER, Address, slot_of
from cachebus.resp.cluster_map import SLOTS
from cachebus.settings import Settings
from cachebus.tools.doctor import failover_times
from cachebus.tools.doctor.asking import asked, texts
from cachebus.tools.doctor.facts import KnownReplica, Watched, none_may_take_over, whole
from cachebus.tools.doctor.finding import Finding, Severity, config_set, ok, unknown
from cachebus.tools.doctor.some import SEVERAL, some

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


def served(settings: Settings, known: Sequence[Address | None], watched: Iterable[Watched]) -> Iterator[Finding]:
    """Check that each shard's slot is served. `known`: where each shard lies."""
    lacking = [shard for shard, place in enumerate(known) if place is None]
    if not lacking:
        yield ok("slots", f"each of {len(known)} shards has a server, as the Cluster's slot map says")
        return
    slots = sorted(slot_of(ShardNames(settings.namespace, shard).meta) for shard in lacking)
    yield Finding(
        "slots",
        Severity.PROBLEM,
        f"no server has the slots of {shards_named(lacking)}",
        f"Of the tenants that lie there ({len(lacking)} of {len(known)} shards) nothing is stored: their leases lapse, "
        f"their reads go to the source, their invalidations raise. {others_then(watched)}",
        otherwise="give them to a primary, by redis-cli --cluster fix HOST:PORT"
        + (f", or there by CLUSTER ADDSLOTS {' '.join(map(str, slots))}" if len(slots) <= SEVERAL else ""),
    )


async def named(addresses: Sequence[Address]) -> list[Finding]:
    """Check that a node finds the Cluster while one server is away: it starts by those that the URL names."""
    answers = await asyncio.gather(*(asked(each, ("CLUSTER", "MYID")) for each in addresses))
    told = {
        place: reply or ("NOPERM" in refused and place)
        for place, ((reply, refused),) in zip(addresses, answers, strict=True)
    }
    gone, ids = [place for place, whose in told.items() if not whose], {whose for whose in told.values() if whose}
    # One name may stand for all of them: then each look at it may find another server.
    alone = len(ids) == 1 and all(_is_ip(each.host) for each in addresses)
    if not (gone or alone):
        return []
    said = [f"{len(gone)} of {len(addresses)} that the URL names do not answer: {some(gone, SEVERAL)}"] if gone else []
    said += ["the URL names only one server that is there"] if alone else []
    return [
        Finding(
            "cluster",
            Severity.ADVICE,
            "; ".join(said),
            "A node that starts finds the Cluster by these alone: while they are away, none can start.",
            otherwise="let the URL name several servers of the Cluster, best all",
        )
    ]


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def unserved(watched: Iterable[Watched]) -> Iterator[Finding]:
    """Check that every slot is served: a Cluster with full coverage refuses all requests otherwise."""
    watched = list(watched)
    said = [set(each.unserved) for each in watched if each.known is not None]
    lacking = sorted(set.intersection(*said)) if said else []
    if lacking:
        shown = " ".join(map(str, lacking[:8]))
        yield Finding(
            "slots",
            Severity.PROBLEM,
            f"no server has {f'slot {shown}' if len(lacking) == 1 else f'{len(lacking)} slots, as {shown}'}",
            f"None of these is a slot of this namespace. {others_then(watched)}",
            otherwise="give them to a primary, by redis-cli --cluster fix HOST:PORT"
            + (f", or there by CLUSTER ADDSLOTS {shown}" if len(lacking) <= 8 else ""),
        )


def failing_over(watched: Mapping[Address, Watched], bound_s: float) -> Iterator[Finding]:
    """Check that a cut-off primary refuses writes before a replica is promoted, and that one can be."""
    said = list(watched.values())
    known = [each.failover_s for each in said if each.failover_s is not None]
    if known:
        yield from failover_times.of_cluster(min(known), bound_s)
    else:
        why = next((each.refused for each in said if each.refused), "nobody says")
        yield unknown("failover", why, "After how long a silence a replica is promoted (cluster-node-timeout).")
    yield from _bare(watched)
    yield from _voting(said)
    for each in said:
        barred = none_may_take_over(each.known or (), "cluster-replica-no-failover yes")
        if barred:
            yield _nobody_to_promote(each.known or (), barred)


def _nobody_to_promote(known: Sequence[KnownReplica], barred: str) -> Finding:
    there = any(not replica.away for replica in known)
    commands, conf = config_set(cluster_replica_no_failover="no") if there else ((), ())
    return Finding(
        "failover",
        Severity.PROBLEM,
        f"no replica of a primary may be promoted: {some([each.address for each in known])}",
        f"Of these {barred}. When the primary dies, nothing takes its place: for its tenants L2 counts as lost until "
        "it is back.",
        mend=commands,
        conf=conf,
        at="the replicas that may be promoted" if there else "",
        otherwise="" if there and "away" not in barred else "bring back those that are away",
    )


def _bare(watched: Mapping[Address, Watched]) -> Iterator[Finding]:
    """Check that each primary has a replica to take its place."""
    bare = [address for address, each in watched.items() if each.known is not None and not each.known]
    if bare:
        said = f"{len(bare)} of {len(watched)} primaries {'has' if len(bare) == 1 else 'have'} no replica: {some(bare)}"
        yield Finding(
            "failover",
            Severity.ADVICE,
            said,
            "When one of them dies, nothing takes its place: for its tenants L2 counts as lost until it is back. "
            f"{others_then(watched.values())} Nothing stale is served.",
            otherwise="add replicas: redis-cli --cluster add-node NEW:PORT HOST:PORT --cluster-slave "
            "--cluster-master-id ID, and ask the doctor again for min-replicas-to-write",
        )


def others_then(watched: Iterable[Watched]) -> str:
    """What becomes of all the others while a slot has no server, as far as the servers say."""
    said = {each.full_coverage for each in watched}
    if "yes" in said:
        return "All others are refused then too (CLUSTERDOWN), as cluster-require-full-coverage is yes."
    if said == {"no"}:
        return "All others go on, as cluster-require-full-coverage is no."
    return "Where cluster-require-full-coverage is yes, as by itself, all others are refused then too (CLUSTERDOWN)."


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
            Severity.PROBLEM,
            few if there == len(voters) else f"{there} of {len(voters)} primaries are there, of those that have slots",
            f"A replica is promoted only by a majority of these, which is {most}: when one dies, nothing takes its "
            f"place, and for its tenants L2 counts as lost until it is back. {others_then(said)}",
            otherwise="have three primaries or more (redis-cli --cluster add-node, then --cluster rebalance "
            "--cluster-use-empty-masters)"
            if there == len(voters)
            else "bring them back, or promote their replicas (there by CLUSTER FAILOVER TAKEOVER)",
        )


def shards_named(shards: Sequence[int]) -> str:
    """For people: "shard 3", "shards 3, 7"."""
    return f"shard{'s' if len(shards) > 1 else ''} {some(shards, SEVERAL)}"


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
    silence, coverage = ("CONFIG", "GET", "cluster-node-timeout"), ("CONFIG", "GET", "cluster-require-full-coverage")
    (text, refused), (flat, hidden), (full, _) = await asked(primary, ("CLUSTER", "NODES"), silence, coverage)
    told = (text or b"").decode(errors="replace")
    lines = lines_of(told)
    known = None if text is None else replicas_in(lines, primary)
    silent_ms = whole(texts(flat).get(silence[-1]))
    voters = [not line.flags & _AWAY for line in lines if "master" in line.flags and line.has_slots]
    return Watched(
        CLUSTER,
        failover_s=None if silent_ms is None else silent_ms / 1000,
        known=known,
        refused=refused or hidden,
        voters=voters,
        unserved=lacking_in(told),
        full_coverage=texts(full).get(coverage[-1], ""),
    )
