"""Checks of how many Sentinels there are, and how many may die before no failover is possible any more.

A failover takes more than half of the Sentinels that one knows. One that was made anew has a new id: it is known beside
what it was before, which is gone for good and counts on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.sentinel_views import SentinelView
from cachebus.tools.doctor.some import SEVERAL, some


def known(views: Sequence[SentinelView]) -> int:
    """How many Sentinels there are: the most that any of them knows, or that the URL names. One that has just started
    does not know the others yet."""
    return max(len(views), *(each.known_sentinels for each in views))


def lost(views: Sequence[SentinelView], service: str) -> Iterator[Finding]:
    """Check that the Sentinels count none that is gone."""
    worst = max(views, key=lambda view: len(_gone(view, views)))
    gone = _gone(worst, views)
    if not gone:
        return
    all_, away = worst.known_sentinels, len(worst.lost_sentinels)
    takes = max(worst.quorum_set, all_ // 2 + 1)
    spare = max(0, all_ - away - takes)
    yield Finding(
        "sentinels",
        Severity.ADVICE,
        f"{worst.sentinel} knows {all_} Sentinels, and {away} of them are gone: {_named(gone)}",
        f"A failover takes {takes} of the {all_}: "
        + (f"{spare} more may die." if spare else "none is possible once one more dies."),
        otherwise="bring them back" + or_forget(views, service),
    )


def or_forget(views: Sequence[SentinelView], service: str) -> str:
    """What else helps where Sentinels are known that the URL does not name, and that do not answer."""
    if not any(_gone(view, views) for view in views):
        return ""
    return (
        f"; those that never come back (as one that was made anew, with a new id) are forgotten by SENTINEL RESET "
        f"{service}, at one Sentinel after the other, half a minute apart, while primary and replicas are there"
    )


def none_to_spare(views: Sequence[SentinelView], service: str) -> Iterator[Finding]:
    """Check that the quorum is no more than what is left when one dies."""
    all_, quorum = known(views), max(view.quorum_set for view in views)
    away = max(len(view.lost_sentinels) for view in views)
    most = all_ // 2 + 1
    if all_ > most and quorum > max(most, all_ - away - 1):
        yield Finding(
            "failover",
            Severity.ADVICE,
            f"the quorum is {quorum}, of {all_} Sentinels",
            "When one of them is away, no failover begins: when the primary dies then, nothing takes its place.",
            mend=(f"SENTINEL SET {service} quorum {most}",),
            at="every Sentinel",
        )


def _gone(view: SentinelView, views: Sequence[SentinelView]) -> list[tuple[str, str]]:
    """Those that it does not hear of and that the URL does not name: of these nothing else is told."""
    named = {(place.host, str(place.port)) for each in views for place in (each.sentinel, *each.others)}
    return [place for place in view.lost_sentinels if place not in named]


def _named(places: Sequence[tuple[str, str]]) -> str:
    return some([f"{host}:{port}" for host, port in places], SEVERAL)
