"""Counts the replicas of a primary, by what the primary says, and by those who would promote them (Sentinels, or the
nodes of a Cluster)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cachebus.tools.doctor.facts import Facts, KnownReplica, Server, Watched, whole

MAX_LAG_S: Final = 10


def needed(replicas: int) -> int:
    """The least `min-replicas-to-write` with which two sides of a split can't both write; 0 without replicas."""
    return (replicas + 1) // 2


def followers_of(server: Server) -> list[Mapping[str, str]]:
    """The followers that count for min-replicas-to-write.

    1. Replicas count, and so does anything that acknowledges like them, such as a reader of changes.
    2. What never acknowledges, such as a backup, does not count.
    3. While nothing was written yet, nobody can have acknowledged: all count.
    """
    if not server.number("master_repl_offset"):
        return server.followers
    return [
        follower
        for follower in server.followers
        if follower.get("offset") not in (None, "0")
        or (follower.get("state") != "online" and follower.get("port") != "0")
    ]


def connected(server: Server) -> int:
    """How many followers there are now."""
    return len(followers_of(server)) if server.followers else server.number("connected_slaves") or 0


def place_of(follower: Mapping[str, str]) -> tuple[str, int]:
    """The address of a follower, as INFO names it."""
    return follower.get("ip", ""), whole(follower.get("port")) or 0


def in_step(server: Server, lag_s: int) -> list[Mapping[str, str]]:
    """The followers that count for min-replicas-to-write with this min-replicas-max-lag."""
    silent_s = ((follower, whole(follower.get("lag"))) for follower in followers_of(server))
    return [each for each, lag in silent_s if each.get("state") == "online" and lag is not None and 0 <= lag <= lag_s]


def keeping_up(server: Server, lag_s: int) -> int:
    """How many followers are in step; if the server does not name them, all that follow."""
    return len(in_step(server, lag_s)) if server.followers else connected(server)


def counted(facts: Facts) -> int:
    """How many replicas the primary has.

    1. Known replicas that are away count: they may be on the side of the one that is promoted.
    2. Followers that nobody knows who would promote them count too.
    3. A replica that is known as dead, and that the primary still lists, counts once.
    """
    known = facts.watched.known
    if known is None:
        return connected(facts.server)
    return len(known) + unnamed(facts.server, facts.watched)


def unnamed(server: Server, watched: Watched) -> int:
    """How many followers are not known to those who would promote them, as with `replica-announced no`. A known replica
    may have another address for the primary, so at most as many count as there are more followers than known ones."""
    known = watched.known or ()
    places = {replica.place for replica in known}
    strangers = sum(place_of(follower) not in places for follower in followers_of(server))
    return min(strangers, max(0, connected(server) - sum(not replica.away for replica in known)))


def longest_lag_s(watched: Watched) -> int:
    """The longest min-replicas-max-lag that ends before a replica is promoted. The primary counts whole seconds, and
    checks once a second, so a cut-off primary takes writes for up to two seconds more."""
    return MAX_LAG_S if watched.failover_s is None else min(MAX_LAG_S, max(1, int(watched.failover_s) - 2))


def disowned(server: Server, watched: Watched) -> list[KnownReplica]:
    """Replicas that keep up with the primary, and that those who would promote them can't reach."""
    places = {place_of(follower) for follower in in_step(server, longest_lag_s(watched))}
    return [replica for replica in watched.known or () if replica.away and replica.place in places]


def absent(facts: Facts) -> Sequence[KnownReplica]:
    """Known replicas that are away. They count, since they may be on the side of the one that is promoted."""
    there = disowned(facts.server, facts.watched)
    return [replica for replica in facts.watched.known or () if replica.away and replica not in there]


def replicas_said(count: int) -> str:
    """For people: "1 replica"."""
    return "1 replica" if count == 1 else f"{count} replicas"
