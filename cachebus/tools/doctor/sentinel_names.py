"""Checks of Sentinels that do not say the same: which primary they name, and after how long a silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cachebus.resp import Address
from cachebus.tools.doctor.finding import ON_FAILOVER, Finding, Severity
from cachebus.tools.doctor.sentinel_views import SentinelView, verb
from cachebus.tools.doctor.some import SEVERAL, some

_ANOTHER_GROUP: Final = (
    "take it out of the URL: it watches another group, whose primary lives. Change nothing there: that group counts on "
    "it"
)
_ONE_SERVER: Final = (
    "it is the same server, by another name, so nothing is lost: have all Sentinels name it alike (SENTINEL CONFIG SET "
    "announce-hostnames and resolve-hostnames)"
)
_LEFT_BEHIND: Final = (
    "if that lasts, and no other nodes or Sentinels belong to that server: SENTINEL REMOVE there, and SENTINEL MONITOR "
    "anew, with the settings (SENTINEL SET) that the others have"
)


def naming_another(views: Sequence[SentinelView], primary: Address) -> Iterator[Finding]:
    """Check that all name the one primary. What helps depends on whose the other one is."""
    naming = [view for view in views if view.names(primary)]
    others = [view for view in views if view.primary and not view.names(primary)]
    tie = 2 * len(naming) <= len(views)
    renamed = [view for view in others if any(view.names_the_same_as(each) for each in naming)]
    foreign = [view for view in others if view not in renamed and _of_another_group(view, naming)]
    behind = [view for view in others if view not in renamed and view not in foreign]
    for which, mend in ((foreign, _ANOTHER_GROUP), (renamed, _ONE_SERVER), (behind, _LEFT_BEHIND)):
        if which:
            yield _naming_another(views, which, tie, mend)


def _of_another_group(view: SentinelView, naming: Sequence[SentinelView]) -> bool:
    """Whether its primary lives, has replicas or Sentinels of its own, and neither primary ever followed the other.

    A Sentinel that a failover left behind knows the primary of today as a replica, or the others know its own as one.
    """
    if view.down or not (view.replicas or view.known_sentinels > 1):
        return False
    theirs = view.places_of_all()
    return not any(theirs & each.places_of_all() for each in naming)


def _naming_another(views: Sequence[SentinelView], others: Sequence[SentinelView], tie: bool, mend: str) -> Finding:
    named = some([f"{v.sentinel} names {v.primary.get('ip')}:{v.primary.get('port')}" for v in others], SEVERAL)
    return Finding(
        "sentinels",
        Severity.PROBLEM if tie else Severity.ADVICE,
        f"{len(others)} of {len(views)} Sentinels {verb(others, 'names', 'name')} another primary: {named}",
        "Here no more than half name any: which one is right they do not tell, and the nodes go by the latest "
        "failover, or by the address. What is written to the other one no node sees."
        if tie
        else "The nodes go by what most say. One that is left behind counts for no failover.",
        ON_FAILOVER if tie else (),
        otherwise=mend,
    )


def differing_times(views: Sequence[SentinelView]) -> Iterator[Finding]:
    """Check that all hold the primary for dead after the same silence."""
    times_s = sorted({view.down_after_s for view in views if view.down_after_s is not None})
    if len(times_s) > 1:
        several = ", ".join(f"{each:g} s" for each in times_s)
        yield Finding(
            "sentinels",
            Severity.ADVICE,
            f"down-after-milliseconds differs: {several}",
            "The least counts for min-replicas-max-lag; how long a failover takes, none of them says.",
            otherwise="set the same for every Sentinel, by SENTINEL SET",
        )
