"""Checks of Sentinels: what they say of the primary and its replicas, and whether they can promote one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cachebus.resp import Address
from cachebus.tools.doctor import failover_times, sentinel_count, sentinel_names
from cachebus.tools.doctor.facts import Watched, none_may_take_over, whole
from cachebus.tools.doctor.finding import Finding, Severity, config_set, ok, unknown
from cachebus.tools.doctor.sentinel_views import SentinelView, verb
from cachebus.tools.doctor.some import SEVERAL, some

_NO_SUCH: Final = "No such master"
"""In what a Sentinel says of a service that it does not watch."""
_UNKNOWN: Final = "unknown command"
"""In what any other server says of SENTINEL."""
LEAST_SENTINELS: Final = 3


def failing_over(
    views: Sequence[SentinelView], watched: Watched, primary: Address, bound_s: float
) -> Iterator[Finding]:
    """Check that the Sentinels can promote a replica, and agree on the primary."""
    silent = [view for view in views if view.silent]
    if silent:
        yield Finding(
            "sentinels",
            Severity.PROBLEM if 2 * len(silent) >= len(views) else Severity.ADVICE,
            f"{len(silent)} of {len(views)} Sentinels {verb(silent, 'does', 'do')} not answer: "
            f"{some([view.sentinel for view in silent], SEVERAL)}",
            f"The first: {silent[0].silent}. A failover takes more than half of them.",
            otherwise="bring them back, or let the URL name those that are there",
        )
    lacking = next((view for view in views if view.quorum), None)
    forgot = [view for view in views if _NO_SUCH in view.refused]
    if forgot:
        yield _forgotten(views, forgot, watched.service, primary)
    strangers = [view for view in views if _UNKNOWN in view.refused]
    if strangers:
        yield _no_sentinels(views, strangers)
    refused = next(filter(None, (view.refusal for view in views if view not in forgot and view not in strangers)), "")
    if lacking is not None:
        yield _no_quorum(views, lacking, watched.service)
    if refused:
        yield unknown(
            "failover",
            refused,
            "Whether the Sentinels can fail over, after how long, and to which replicas.",
            "let the Sentinels' user have SENTINEL MASTER, SENTINEL REPLICAS and SENTINEL CKQUORUM",
        )
    yield from sentinel_names.naming_another(views, primary)
    yield from sentinel_names.differing_times(views)
    yield from _few(views)
    if lacking is None:
        yield from sentinel_count.lost(views, watched.service)
        yield from sentinel_count.none_to_spare(views, watched.service)
    yield from _several_names(views)
    down = [view for view in views if view.down]
    if down:
        yield _held_for_dead(views, down, watched.service)
    barred = none_may_take_over(watched.known or (), "replica-priority 0")
    if barred:
        yield _nobody_to_promote(watched, barred)
    attempts_s = [view.attempt_s for view in views if view.attempt_s is not None]
    yield from failover_times.of_sentinels(watched.service, watched.failover_s, attempts_s, bound_s)
    if not (silent or lacking or refused or down or forgot or strangers):
        yield ok("sentinels", f"{len(views)} Sentinels would agree on a failover")


def _no_sentinels(views: Sequence[SentinelView], strangers: Sequence[SentinelView]) -> Finding:
    return Finding(
        "sentinels",
        Severity.PROBLEM if 2 * len(strangers) >= len(views) else Severity.ADVICE,
        f"{len(strangers)} of {len(views)} {verb(strangers, 'is no Sentinel', 'are no Sentinels')}: "
        f"{some([view.sentinel for view in strangers], SEVERAL)}",
        "They do not know the command SENTINEL, and tell no node of a primary.",
        otherwise="let the URL name the Sentinels' ports (by themselves 26379), and not those of the data",
    )


def _nobody_to_promote(watched: Watched, barred: str) -> Finding:
    there = any(not replica.away for replica in watched.known or ())
    commands, conf = config_set(replica_priority="100") if there else ((), ())
    return Finding(
        "failover",
        Severity.PROBLEM,
        f"no replica may be promoted: {barred}",
        "When the primary dies, nothing takes its place: L2 counts as lost until it is back.",
        mend=commands,
        conf=conf,
        at="the replicas that may be promoted" if there else "",
        otherwise="" if there and "away" not in barred else "bring back those that are away",
    )


def _forgotten(
    views: Sequence[SentinelView], forgot: Sequence[SentinelView], service: str, primary: Address
) -> Finding:
    quorum = max((whole(view.primary.get("quorum")) or 0 for view in views), default=0) or len(views) // 2 + 1
    few = 2 * (len(views) - len(forgot)) <= len(views)
    return Finding(
        "failover",
        Severity.PROBLEM if few else Severity.ADVICE,
        f"{len(forgot)} of {len(views)} Sentinels {verb(forgot, 'does', 'do')} not watch {service!r}: "
        f"{some([view.sentinel for view in forgot], SEVERAL)}",
        "A failover takes more than half of them: none is possible, and nothing takes the primary's place when it dies."
        if few
        else "They count for no failover.",
        mend=(f"SENTINEL MONITOR {service} {primary.host} {primary.port} {quorum}",),
        at="each of them, with the settings (SENTINEL SET) that the others have",
    )


def _few(views: Sequence[SentinelView]) -> Iterator[Finding]:
    """Check that failovers, and nodes' access to the primary, survive the death of one Sentinel."""
    if not any(view.primary for view in views):
        return
    all_ = sentinel_count.known(views)
    if all_ < LEAST_SENTINELS:
        yield Finding(
            "sentinels",
            Severity.ADVICE,
            f"there {'is' if all_ == 1 else 'are'} only {all_} of them",
            "A failover takes more than half of the Sentinels: with one of these none is left that could agree on it.",
            otherwise="have three or more, on machines of their own, and let the URL name them",
        )
    elif len(views) < LEAST_SENTINELS:
        yield Finding(
            "sentinels",
            Severity.ADVICE,
            f"the URL names {len(views)} of {all_} Sentinels",
            "While those that it names are away, no node can start, nor find another primary.",
            otherwise="let the URL name all of them",
        )


def _several_names(views: Sequence[SentinelView]) -> Iterator[Finding]:
    """Check that no Sentinel is named twice: nodes go by what most of those say that the URL names."""
    for view in (view for view in views if view.others):
        names = [view.sentinel, *view.others]
        yield Finding(
            "sentinels",
            Severity.ADVICE,
            f"{some(names)} are one Sentinel",
            "It counts once for a failover; but nodes hear it as often as it is named, and so it outvotes others, also "
            "where it was cut off from them.",
            otherwise="let the URL name each Sentinel once, by the name that nodes reach it by",
        )


def _no_quorum(views: Sequence[SentinelView], view: SentinelView, service: str) -> Finding:
    all_ = sentinel_count.known(views)
    high = (whole(view.primary.get("quorum")) or 0) > all_
    return Finding(
        "failover",
        Severity.PROBLEM,
        f"the Sentinels would not agree on a failover: {view.quorum}",
        "When the primary dies, nothing takes its place: L2 counts as lost until it is back.",
        mend=(f"SENTINEL SET {service} quorum {all_ // 2 + 1}",) if high else (),
        at="every Sentinel" if high else "",
        otherwise=""
        if high
        else "bring Sentinels back: it takes more than half of them, and the quorum"
        + sentinel_count.or_forget(views, service),
    )


def _held_for_dead(views: Sequence[SentinelView], down: Sequence[SentinelView], service: str) -> Finding:
    """The finding if Sentinels take the primary for dead. That they agree does not help: either a failover is coming,
    or none is possible."""
    return Finding(
        "failover",
        Severity.PROBLEM,
        f"{len(down)} of {len(views)} Sentinels {verb(down, 'holds', 'hold')} the primary for dead ({down[0].down})",
        "If it is dead, a failover is under way, or does not succeed. If it is not, the Sentinels can't reach it, or "
        "are not let in: then they may promote a replica beside it, or can't promote any when it dies.",
        otherwise="look whether it runs, and whether Sentinels reach it and can log in, there and at its replicas: "
        f"SENTINEL SET {service} auth-pass (and auth-user), at every Sentinel",
    )
