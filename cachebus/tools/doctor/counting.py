"""How many replicas a primary has, by those who know: the primary itself, and whoever would promote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cachebus.tools.doctor.facts import Facts, Known, Server, Watched, whole

MAX_LAG_S: Final = 10


def needed(replicas: int) -> int:
    """The least `min-replicas-to-write` with which two sides of so many replicas can't both write; 0 without any."""
    return (replicas + 1) // 2


def followers_of(server: Server) -> list[Mapping[str, str]]:
    """Those who follow now, be they replicas or something else that acknowledges as they do, as a reader of changes:
    min-replicas-to-write counts those as well. Who never acknowledges, as a backup, counts for nothing; while nothing
    was written yet, nobody can have acknowledged anything."""
    if not server.number("master_repl_offset"):
        return server.followers
    return [
        follower
        for follower in server.followers
        if follower.get("offset") not in (None, "0")
        or (follower.get("state") != "online" and follower.get("port") != "0")
    ]


def connected(server: Server) -> int:
    """How many follow now."""
    return len(followers_of(server)) if server.followers else server.number("connected_slaves") or 0


def place_of(follower: Mapping[str, str]) -> tuple[str, int]:
    """Where a follower is, as INFO names it."""
    return follower.get("ip", ""), whole(follower.get("port")) or 0


def in_step(server: Server, lag_s: int) -> list[Mapping[str, str]]:
    """Those that would count for min-replicas-to-write, with that min-replicas-max-lag."""
    silent_s = ((follower, whole(follower.get("lag"))) for follower in followers_of(server))
    return [each for each, lag in silent_s if each.get("state") == "online" and lag is not None and 0 <= lag <= lag_s]


def keeping_up(server: Server, lag_s: int) -> int:
    """How many that are; all that follow where the server does not name them."""
    return len(in_step(server, lag_s)) if server.followers else connected(server)


def counted(facts: Facts) -> int:
    """How many replicas the primary has. Those that are away count, as whoever promotes them knows them: they may be
    with the one that is promoted. What follows beside those that are known counts too. One that those who know it hold
    for dead, and that the primary still lists, is one."""
    known = facts.watched.known
    if known is None:
        return connected(facts.server)
    return len(known) + unnamed(facts.server, facts.watched)


def unnamed(server: Server, watched: Watched) -> int:
    """How many follow that those do not name who would promote them, as with `replica-announced no`. One may be known
    by another address than the primary sees it at, so as many as are there are taken for these."""
    known = watched.known or ()
    places = {replica.place for replica in known}
    strangers = sum(place_of(follower) not in places for follower in followers_of(server))
    return min(strangers, max(0, connected(server) - sum(not replica.away for replica in known)))


def longest_lag_s(watched: Watched) -> int:
    """The longest lag that is over before a replica is promoted. The primary counts in whole seconds, and looks once
    a second, so one that is cut off writes for up to two more."""
    return MAX_LAG_S if watched.failover_s is None else min(MAX_LAG_S, max(1, int(watched.failover_s) - 2))


def disowned(server: Server, watched: Watched) -> list[Known]:
    """The replicas that keep up with the primary, and that those who would promote them can't reach."""
    places = {place_of(follower) for follower in in_step(server, longest_lag_s(watched))}
    return [replica for replica in watched.known or () if replica.away and replica.place in places]


def absent(facts: Facts) -> Sequence[Known]:
    """The replicas that are known and not there: they count, since they may be with the one that is promoted."""
    there = disowned(facts.server, facts.watched)
    return [replica for replica in facts.watched.known or () if replica.away and replica not in there]


def replicas_said(count: int) -> str:
    """For people: "1 replica"."""
    return "1 replica" if count == 1 else f"{count} replicas"
