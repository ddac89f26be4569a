"""Checks of what is left after a failover, when one replica is the primary, and the others must follow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cachebus.tools.doctor.counting import counted, in_step, longest_lag_s, needed, place_of, replicas_said
from cachebus.tools.doctor.facts import Facts, Server
from cachebus.tools.doctor.finding import ON_FAILOVER, Finding, Severity, unknown
from cachebus.tools.doctor.replication import WRITES
from cachebus.tools.doctor.some import some


def following(replica: Server) -> Iterator[Finding]:
    """Check that it is a replica that follows this primary. Otherwise it can't be counted on."""
    info = replica.info
    if info.get("role") == "master":
        yield Finding(
            "replicas",
            Severity.PROBLEM,
            "it is a primary itself",
            "Those who would promote it hold it for a replica. What one of two primaries acknowledges is lost.",
            ON_FAILOVER,
            otherwise="look which of them nodes and Sentinels or the Cluster name, and have the other one follow it",
        )
    elif info.get("master_sync_in_progress") == "1":
        yield Finding(
            "replicas",
            Severity.ADVICE,
            "it is being copied to, and does not follow yet",
            f"It counts for {WRITES}, and keeps a failover from being of use, until that is done.",
            otherwise="look again later; one that is copied to again and again is too slow for the primary's "
            "client-output-buffer-limit replica",
        )
    elif info.get("master_link_status") == "down":
        yield Finding(
            "replicas",
            Severity.PROBLEM,
            "it does not follow: its link to the primary is down",
            "It has nothing of what was written since, and counts for nothing when the primary or another one dies.",
            otherwise="look at its log: whether it reaches the primary, and may log in there (masteruser, masterauth)",
        )


def left_over(facts: Facts) -> Iterator[Finding]:
    """Check that the promoted replica has as many replicas as it waits for."""
    count = counted(facts)
    asked = [(each.address, each.server.setting(WRITES)) for each in facts.replicas if each.server is not None]
    waiting = [has for _, has in asked if has is not None] or [facts.server.setting(WRITES) or 0]
    most = max(waiting)
    if facts.server.info.get("role") != "master" or count < 2 or not most:
        return
    where = ", ".join(str(address) for address, has in asked if has == most) or "this server"
    if most > count - 1:
        yield Finding(
            "after failover",
            Severity.PROBLEM,
            f"{replicas_said(count)}, and {WRITES} is {most} at {where}",
            f"After a failover {count - 1} {_is(count - 1)} left: whoever is promoted refuses every write "
            "(NOREPLICAS) until the dead server is back.",
            otherwise=f"{needed(count)} is enough for {replicas_said(count)}: set it there, and at the primary, once "
            "it is certain that none of them was promoted",
        )
        return
    useful = _useful(facts)
    # If too few follow now, another finding says so.
    if useful is not None and (facts.server.setting(WRITES) or 0) <= len(useful) <= most:
        yield Finding(
            "after failover",
            Severity.ADVICE,
            f"of {replicas_said(count)} {len(useful)} {_follow(len(useful))}, and {WRITES} is {most} at {where}",
            f"After a failover {max(0, len(useful) - 1)} would be left: whoever is promoted refuses every write "
            "(NOREPLICAS) until others follow it.",
            otherwise="bring back those that are away or do not follow",
        )


def _useful(facts: Facts) -> Sequence[tuple[str, int]] | None:
    """The addresses of replicas that keep up and can be counted on; None if the server does not name its followers."""
    if not facts.server.followers:
        return None
    lag_s = facts.server.setting("min-replicas-max-lag") or longest_lag_s(facts.watched)
    places = {known.address: known.place for known in facts.watched.known or ()}
    broken = {
        places.get(each.address, (each.address.host, each.address.port))
        for each in facts.replicas
        if each.server is not None and any(following(each.server))
    }
    return [place for each in in_step(facts.server, lag_s) if (place := place_of(each)) not in broken]


def locked_out(facts: Facts) -> Iterator[Finding]:
    """Check that each server could follow each other one: it may lack the password that the other asks for, or still
    have one that it asks for no more."""
    everyone = [facts.server, *(replica.server for replica in facts.replicas if replica.server is not None)]
    for server in everyone:
        others = [other for other in everyone if other is not server]
        barred = [str(other.address) for other in others if server.logins.let_in_by(other.logins) is False]
        if barred:
            says = (
                f"{server.address} shows a password (masterauth) that {', '.join(barred)} "
                f"{'does' if len(barred) == 1 else 'do'} not take"
                if server.logins.shows_password
                else f"{server.address} has no masterauth, and {', '.join(barred)} "
                f"{'asks' if len(barred) == 1 else 'ask'} for a password"
            )
            yield Finding(
                "after failover",
                Severity.PROBLEM,
                says,
                "When one of these is the primary, it can't follow, nor where a link to it breaks: it counts for "
                "nothing then, and whoever waits for it refuses every write (NOREPLICAS).",
                otherwise="there CONFIG SET masterauth (and masteruser), and CONFIG REWRITE",
                at=str(server.address),
            )
        unsure = [str(other.address) for other in others if server.logins.let_in_by(other.logins) is None]
        if unsure and server.logins.shows_password:
            yield unknown(
                "after failover",
                f"whether {some(unsure)} {'takes' if len(unsure) == 1 else 'take'} the password that "
                f"{server.address} shows (masterauth, as {server.logins.user})",
                "If not, it can't follow once one of these is the primary.",
                "let who asks have ACL GETUSER there, or ask with the user and password that servers follow each "
                "other with",
            )


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _follow(count: int) -> str:
    return "follows" if count == 1 else "follow"
