"""Checks of replication: what a cut-off primary still accepts, which replicas count, and what voids L2.

In a split at most one side may take writes. A cut-off primary with n replicas may have some of them on its side; the
promoted one has the others. With m = min-replicas-to-write both sides can write if m <= (n - 1) / 2. So m must be more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cachebus.resp import SENTINEL
from cachebus.tools.doctor.counting import (
    absent,
    connected,
    counted,
    disowned,
    keeping_up,
    longest_lag_s,
    needed,
    replicas_said,
)
from cachebus.tools.doctor.facts import Facts, KnownReplica, Watched
from cachebus.tools.doctor.finding import G7, ON_FAILOVER, Finding, Severity, config_set, ok, unknown
from cachebus.tools.doctor.some import SEVERAL, some

WRITES, LAG = "min-replicas-to-write", "min-replicas-max-lag"


def role(facts: Facts) -> Iterator[Finding]:
    """Check that the server is a primary."""
    info = facts.server.info
    if info.get("role") is None:
        yield unknown("replication", facts.server.info_refused)
    elif info["role"] != "master":
        writable = info.get("slave_read_only") == "0"
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        yield Finding(
            "role",
            Severity.PROBLEM,
            "this is a replica",
            "replica-read-only is no: it takes writes, and loses them at its next copy of the primary. No other server "
            "sees them."
            if writable
            else "It refuses writes, and so every operation of cachebus.",
            ON_FAILOVER if writable else (),
            otherwise=f"let the URL name the primary, {primary}",
        )


def cut_off(facts: Facts) -> Iterator[Finding]:
    """Check that an acknowledged invalidation survives a failover, whichever servers are cut off from each other."""
    server = facts.server
    if server.info.get("role") != "master":
        return
    there, most_lag_s, count = connected(server), longest_lag_s(facts.watched), counted(facts)
    known, good = server.setting(WRITES), server.number("min_slaves_good_slaves")
    # INFO has that figure only where the setting is at least 1 (and its lag is not 0).
    has = known if known is not None else 0 if good is None else 1
    good = there if good is None else good
    if not count and not has:
        yield _alone(facts)
    elif has and server.setting(LAG) == 0:
        yield from _lagging(facts, f"{replicas_said(count)}, {WRITES} is {has}", most_lag_s)
    elif has and good < has:
        yield _too_few(f"{WRITES} is {_known(known, has)}", good, count)
    elif known is None and 0 < has < needed(count):
        yield unknown(
            "replication",
            f"{replicas_said(count)}, {WRITES} is at least 1; {facts.server.config_refused}",
            f"With {count} replicas it takes {needed(count)}.",
        )
    elif has < needed(count):
        yield _two_sides(facts, count, has, most_lag_s)
    elif count == 1:
        yield _one_replica(has)
        yield from _lagging(facts, f"1 replica, {WRITES} is {has}", most_lag_s)
    else:
        yield from _lagging(facts, f"{count} replicas, {WRITES} is {has}", most_lag_s)


def _alone(facts: Facts) -> Finding:
    """The finding if no replica follows. Whether one did, and was promoted, only Sentinels or the Cluster could tell.
    The server counts full copies since its start, but a backup is one of them, too."""
    copied = facts.server.number("sync_full") or 0
    if copied and facts.watched.known is None:
        return Finding(
            "replication",
            Severity.ADVICE,
            f"no replica follows, and {WRITES} is 0; but something has followed since the "
            f"server's start (sync_full is {copied})",
            "A backup, or a replica: that could not be checked. If it was promoted, two primaries write: what this one "
            "acknowledges is lost, and its nodes serve on.",
            otherwise="look at who has followed: if one of them is a primary now, let the URL name that one. If these "
            "were backups, or replicas that are no more: CONFIG RESETSTAT, and this is told no more",
        )
    return ok(
        "replication",
        "a primary without replicas",
        "If none has ever followed, nothing fails over; the server itself does not remember. With n replicas and "
        f"something that promotes them, {WRITES} must be more than half of n - 1.",
    )


def _too_few(said: str, good: int, count: int) -> Finding:
    """The finding if writes are refused for lack of replicas. They must be, if a replica may have been promoted.
    Nothing in a server proves that none was: it forgets by a restart, and after repl-backlog-ttl. So no command is
    printed that would let it write."""
    return Finding(
        "replication",
        Severity.PROBLEM,
        f"{said}, and {replicas_said(good)} {_keep(good)} up",
        "Every write is refused (NOREPLICAS): L2 counts as lost. If a replica has ever followed, it may have been "
        "promoted: then this is a primary that was deposed, and refusing is what keeps the promises. Whether one has, "
        f"the server does not tell for certain. Do not set {WRITES} to 0 before you know.",
        otherwise="look who is the primary now (SENTINEL get-master-addr-by-name, CLUSTER SLOTS, ROLE of each "
        "replica): if it is another, let the URL name that one; if it is this one, bring a replica back"
        + (f" ({needed(count)} is enough for {replicas_said(count)}). " if 0 < needed(count) <= good else ". ")
        + "0 is right only for a server that is to have no replicas, and has none that was promoted",
    )


def _keep(count: int) -> str:
    return "keeps" if count == 1 else "keep"


def _two_sides(facts: Facts, count: int, has: int, most_lag_s: int) -> Finding:
    """The finding if both sides of a split could write. Its commands would refuse every write if too few replicas are
    there: then they are not printed."""
    least, lag_s = needed(count), within(facts.server.setting(LAG), most_lag_s)
    there = keeping_up(facts.server, lag_s)
    commands, conf = to_wait_for(least, lag_s)
    obeyed, gone = there >= least, absent(facts)
    return Finding(
        "replication",
        Severity.PROBLEM,
        f"{replicas_said(count)}, and {WRITES} is {has}",
        (
            "A primary that was cut off goes on taking writes and renewing leases after a replica was promoted: what "
            "it acknowledges then is lost, and its nodes serve on."
            if not has
            else f"Cut off with {has} of them, a primary goes on taking writes and renewing leases, as long as it is "
            f"cut off, beside the one that was promoted with the others. With {count} replicas it takes {least}."
        )
        + (
            ""
            if obeyed
            else f" Only {there} {_keep(there)} up now: with {WRITES} {least} every write is refused until others do. "
            "That is right if one of those that are away was promoted."
        ),
        ON_FAILOVER,
        commands if obeyed else (),
        conf if obeyed else (),
        f"{_forget(facts.watched, gone)}: then {needed(count - len(gone))} {_is(needed(count - len(gone)))} enough"
        if gone
        else _more_than_one(count),
    )


def gone(facts: Facts) -> Iterator[Finding]:
    """Check which of the replicas that count are away."""
    away, refused = absent(facts), disowned(facts.server, facts.watched)
    if facts.server.info.get("role") != "master":
        return
    if refused:
        yield Finding(
            "replicas away",
            Severity.PROBLEM,
            f"{replicas_said(len(refused))} {_keep(len(refused))} up with this primary "
            f"and {_is(len(refused))} held for dead: "
            f"{some([f'{each.address} ({each.away})' for each in refused], SEVERAL)}",
            "Those who would promote it can't reach it, or are not let in: when the primary dies, nothing takes its "
            "place, and L2 counts as lost.",
            otherwise="see to it that they reach it, and can log in (SENTINEL SET NAME auth-pass, auth-user)",
        )
    if away:
        yield Finding(
            "replicas away",
            Severity.ADVICE,
            f"{replicas_said(len(away))} of {len(facts.watched.known or ())} "
            f"{_is(len(away))} away: {some([f'{each.address} ({each.away})' for each in away], SEVERAL)}",
            f"They count for {WRITES} as those do that are there: one of them may come back with another primary.",
            otherwise=f"bring them back. {_forget(facts.watched, away)}".rstrip(". "),
        )


def _forget(watched: Watched, away: Sequence[KnownReplica]) -> str:
    lost = f"If {some([each.address for each in away], SEVERAL)} never come back"
    if watched.kind == SENTINEL:
        return (
            f"{lost}: SENTINEL RESET {watched.service} at one Sentinel after the other, each when the last one knows "
            "its replicas and the others again"
        )
    commands = some([f"CLUSTER FORGET {each.id}" for each in away], SEVERAL, joined=" and ")
    return f"{lost}: {commands}, at every node within a minute"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _one_replica(has: int) -> Finding:
    return Finding(
        "replicas",
        Severity.ADVICE,
        f"1 replica, and {WRITES} is {has}",
        "No promise breaks. But no failover helps either: the replica, once promoted, has none itself, and refuses "
        "every write (NOREPLICAS) until the dead server is back.",
        otherwise=_more_than_one(1),
    )


def _more_than_one(count: int) -> str:
    return "" if count > 1 else "with a second replica of each primary a failover is of use, and 1 stays enough"


def to_wait_for(replicas: int, lag_s: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The commands and lines, as of `config_set`, that set both min-replicas settings."""
    return config_set(min_replicas_to_write=str(replicas), min_replicas_max_lag=str(lag_s))


def within(lag_s: int | None, most_lag_s: int) -> int:
    """The lag to set: the present one, if it is short enough."""
    return lag_s if lag_s is not None and 0 < lag_s <= most_lag_s else most_lag_s


def _lagging(facts: Facts, said: str, most_lag_s: int) -> Iterator[Finding]:
    lag_s = facts.server.setting(LAG)
    if lag_s is None:
        yield unknown("replication", f"{said}; {facts.server.config_refused}", f"{LAG} is not known.")
    elif lag_s > most_lag_s or lag_s == 0:
        commands, conf = config_set(min_replicas_max_lag=str(most_lag_s))
        yield Finding(
            "replication",
            Severity.PROBLEM if lag_s == 0 else Severity.ADVICE,
            f"{said}, {LAG} is {lag_s} s",
            f"0 turns {WRITES} off."
            if lag_s == 0
            else "A primary that was cut off takes writes for that long, perhaps beyond the promotion of a replica.",
            ON_FAILOVER,
            commands,
            conf,
        )
    else:
        yield ok(
            "replication",
            f"{said}, {LAG} is {lag_s} s",
            "A primary that was cut off soon refuses to write, and cannot renew a lease.",
        )


def migrating(facts: Facts) -> Iterator[Finding]:
    """Check whether the Cluster moves replicas between primaries, which changes how many each has."""
    allowed: Mapping[str, str] = facts.server.config
    if facts.server.info.get("cluster_enabled") == "1" and allowed.get("cluster-allow-replica-migration") == "yes":
        commands, conf = config_set(cluster_allow_replica_migration="no")
        yield Finding(
            "replica migration",
            Severity.ADVICE,
            "cluster-allow-replica-migration is yes",
            f"A replica may move to a primary that has lost its own; {WRITES} that was right for each is then too "
            "little for one, and too much for the other.",
            ON_FAILOVER,
            commands,
            conf,
            "on every node of the Cluster, replicas too",
        )


def covering(facts: Facts) -> Iterator[Finding]:
    """Check whether a server of a Cluster goes on while another one's slots have no server."""
    info, config = facts.server.info, facts.server.config
    if info.get("cluster_enabled") == "1" and config.get("cluster-require-full-coverage") == "yes":
        commands, conf = config_set(cluster_require_full_coverage="no")
        yield Finding(
            "full coverage",
            Severity.ADVICE,
            "cluster-require-full-coverage is yes",
            "While any slot has no server, as between a primary's death and the promotion of its replica, this one "
            "refuses everything (CLUSTERDOWN): L2 counts as lost for all tenants, not for those of that slot alone. A "
            "primary that was cut off from the others refuses everything either way.",
            (),
            commands,
            conf,
            "on every node of the Cluster, replicas too",
        )


def new_ids(facts: Facts) -> Iterator[Finding]:
    """Check for what gives a running server another replication id, by which all of L2 becomes void."""
    server = facts.server
    ttl_s = server.setting("repl-backlog-ttl")
    if server.info.get("role") != "master" or ttl_s is None:
        return
    first = (
        "A first replica, and a backup by `redis-cli --rdb` which is one for a moment, give the server another "
        "replication id: a new epoch begins, all of L2 is void, and write guards that stand are lost (guards_lost)."
    )
    later = "So does the end of repl-backlog-ttl after the last one has left; with 0 it happens once."
    if server.info.get("repl_backlog_active") != "1":
        yield ok("replication id", "no replica follows, nor has one within repl-backlog-ttl", f"{first} {later}")
    elif ttl_s and not (server.number("connected_slaves") or 0):
        commands, conf = config_set(repl_backlog_ttl="0")
        yield Finding(
            "replication id",
            Severity.ADVICE,
            f"the last replica has left, and repl-backlog-ttl is {ttl_s} s",
            f"When that is over, the server takes another replication id, as after a failover. {first}",
            (G7,),
            commands,
            conf,
            "or take backups by BGSAVE and a copy of the file, which change nothing",
        )


def _known(known: int | None, least: int) -> str:
    return str(known) if known is not None else f"at least {least}"
