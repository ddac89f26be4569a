"""Checks of Sentinels: what they say of the primary and its replicas, and whether they can promote one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cachebus.errors import CacheBusError
from cachebus.resp import SENTINEL, Address, Places
from cachebus.tools.doctor.facts import ASK_TIMEOUT_S, Asker, KnownReplica, Watched, texts, whole
from cachebus.tools.doctor.finding import ON_FAILOVER, Finding, Level, config_set, ok, unknown

_NO_SUCH: Final = "No such master"
"""In what a Sentinel says of a service that it does not watch."""
_AWAY: Final = frozenset(("disconnected", "o_down", "s_down"))
_DOWN: Final = frozenset(("o_down", "s_down"))

LEAST_SENTINELS: Final = 3
LEAST_FAILOVER_S: Final = 3.0
"""The least min-replicas-max-lag is a second. It ends only so long after the last acknowledgement."""
FAILOVER_MS: Final = 5000


@dataclass(frozen=True, slots=True)
class SentinelView:
    """What one Sentinel says."""

    sentinel: Address
    silent: str = ""
    """Why it can't be asked."""
    primary: Mapping[str, str] = field(default_factory=dict)
    """Its answer to SENTINEL MASTER; empty if it does not answer."""
    replicas: Sequence[Mapping[str, str]] = ()
    refused: str = ""
    """Why it refuses an answer."""
    quorum: str = ""
    """Why the Sentinels would not agree on a failover; "" if they would, or if that is refused."""
    quorum_refused: str = ""

    def names(self, primary: Address) -> bool:
        """Whether it watches this primary."""
        return (self.primary.get("ip"), self.primary.get("port")) == (primary.host, str(primary.port))

    @property
    def down(self) -> str:
        """Why it takes the primary for dead, in its words; "" if it does not."""
        return ", ".join(sorted(_DOWN & set(self.primary.get("flags", "").split(","))))

    @property
    def down_after_s(self) -> float | None:
        """After how many silent seconds it takes the primary for dead."""
        silent_ms = whole(self.primary.get("down-after-milliseconds"))
        return None if silent_ms is None else silent_ms / 1000


async def views_of(places: Places) -> list[SentinelView]:
    """The view of each Sentinel."""
    return list(await asyncio.gather(*(_view(each, places.service) for each in places.addresses)))


async def _view(sentinel: Address, service: str) -> SentinelView:
    try:
        asker = await Asker.open(sentinel, ASK_TIMEOUT_S)
        try:
            flat, refused = await asker.ask("SENTINEL", "MASTER", service)
            rows, hidden = await asker.ask("SENTINEL", "REPLICAS", service)
            _, quorum = await asker.ask("SENTINEL", "CKQUORUM", service)
        finally:
            asker.close()
    except CacheBusError as error:
        return SentinelView(sentinel, silent=str(error))
    agreed = "NOQUORUM" in quorum
    return SentinelView(
        sentinel,
        "",
        texts(flat),
        [texts(row) for row in rows or ()],
        refused or hidden,
        quorum if agreed else "",
        "" if agreed else quorum,
    )


def watched_by(views: Sequence[SentinelView], service: str, primary: Address) -> Watched:
    """Their views merged: the least time-out, since any may begin a failover, and every replica that any of them
    knows."""
    told = [view for view in views if view.primary and not view.refused]
    if not told:
        return Watched(SENTINEL, service, refused=next((view.refused or view.silent for view in views), ""))
    times_s = [view.down_after_s for view in told if view.down_after_s is not None]
    agreeing = [view for view in told if view.names(primary)] or told
    return Watched(SENTINEL, service, min(times_s, default=None), _merged(agreeing, primary))


def _merged(views: Sequence[SentinelView], primary: Address) -> list[KnownReplica]:
    """Their replicas merged: one that any Sentinel reaches is there."""
    found: dict[Any, KnownReplica] = {}
    for view in views:
        for row in view.replicas:
            place = row.get("ip", ""), whole(row.get("port")) or 0
            flags = frozenset(row.get("flags", "").split(","))
            away = ", ".join(sorted(flags & _AWAY))
            before = found.get(place)
            found[place] = KnownReplica(
                replace(primary, host=place[0], port=place[1]),
                away=away and (away if before is None else before.away),
                promotable=row.get("slave-priority") != "0",
            )
    return list(found.values())


def failing_over(views: Sequence[SentinelView], watched: Watched, primary: Address) -> Iterator[Finding]:
    """Check that the Sentinels can promote a replica, and agree on the primary."""
    silent = [view for view in views if view.silent]
    if silent:
        yield Finding(
            "sentinels",
            Level.PROBLEM if 2 * len(silent) >= len(views) else Level.ADVICE,
            f"{len(silent)} of {len(views)} Sentinels {_verb(silent, 'does', 'do')} not answer: "
            f"{', '.join(str(view.sentinel) for view in silent)}",
            f"The first: {silent[0].silent}. A failover takes more than half of them.",
            otherwise="bring them back, or let the URL name those that are there",
        )
    lacking = next((view for view in views if view.quorum), None)
    forgot = [view for view in views if _NO_SUCH in view.refused]
    if forgot:
        yield _forgotten(views, forgot, watched.service, primary)
    refusals = (view.refused or view.quorum_refused for view in views if view not in forgot)
    refused = next(filter(None, refusals), "")
    if lacking is not None:
        yield _no_quorum(views, lacking, watched.service)
    if refused:
        yield unknown(
            "failover",
            refused,
            "Whether the Sentinels can fail over, after how long, and to which replicas.",
            "let the Sentinels' user have SENTINEL MASTER, SENTINEL REPLICAS and SENTINEL CKQUORUM",
        )
    yield from _disagreeing(views, primary)
    yield from _few(views)
    down = [view for view in views if view.down]
    if down:
        yield _held_for_dead(views, down, watched.service)
    if watched.known and not any(replica.promotable for replica in watched.known):
        commands, conf = config_set(replica_priority="100")
        yield Finding(
            "failover",
            Level.PROBLEM,
            "no replica may be promoted: each has replica-priority 0",
            "When the primary dies, nothing takes its place: L2 counts as lost until it is back.",
            mend=commands,
            conf=conf,
            at="the replicas that may be promoted",
        )
    if watched.failover_s is not None and watched.failover_s < LEAST_FAILOVER_S:
        option = f"SENTINEL SET {watched.service} down-after-milliseconds {FAILOVER_MS}"
        said = f"down-after-milliseconds is {watched.failover_s * 1000:.0f}"
        yield too_soon(said, (option,), (), "every Sentinel")
    if not (silent or lacking or refused or down or forgot):
        yield ok("sentinels", f"{len(views)} Sentinels would agree on a failover")


def _forgotten(
    views: Sequence[SentinelView], forgot: Sequence[SentinelView], service: str, primary: Address
) -> Finding:
    quorum = max((whole(view.primary.get("quorum")) or 0 for view in views), default=0) or len(views) // 2 + 1
    few = 2 * (len(views) - len(forgot)) <= len(views)
    return Finding(
        "failover",
        Level.PROBLEM if few else Level.ADVICE,
        f"{len(forgot)} of {len(views)} Sentinels {_verb(forgot, 'does', 'do')} not watch {service!r}: "
        f"{', '.join(str(view.sentinel) for view in forgot)}",
        "A failover takes more than half of them: none is possible, and nothing takes the primary's place when it dies."
        if few
        else "They count for no failover.",
        mend=(f"SENTINEL MONITOR {service} {primary.host} {primary.port} {quorum}",),
        at="each of them, with the settings (SENTINEL SET) that the others have",
    )


def _known(views: Sequence[SentinelView]) -> int:
    """How many Sentinels there are: the most that any of them knows, or that the URL names. One that has just started
    does not know the others yet."""
    return max(len(views), *((whole(each.primary.get("num-other-sentinels")) or 0) + 1 for each in views))


def _few(views: Sequence[SentinelView]) -> Iterator[Finding]:
    """Check that failovers, and nodes' access to the primary, survive the death of one Sentinel."""
    if not any(view.primary for view in views):
        return
    all_ = _known(views)
    if all_ < LEAST_SENTINELS:
        yield Finding(
            "sentinels",
            Level.ADVICE,
            f"there {'is' if all_ == 1 else 'are'} only {all_} of them",
            "A failover takes more than half of the Sentinels: with one of these none is left that could agree on it.",
            otherwise="have three or more, on machines of their own, and let the URL name them",
        )
    elif len(views) < LEAST_SENTINELS:
        yield Finding(
            "sentinels",
            Level.ADVICE,
            f"the URL names {len(views)} of {all_} Sentinels",
            "While those that it names are away, no node can start, nor find another primary.",
            otherwise="let the URL name all of them",
        )


def _no_quorum(views: Sequence[SentinelView], view: SentinelView, service: str) -> Finding:
    all_ = _known(views)
    high = (whole(view.primary.get("quorum")) or 0) > all_
    return Finding(
        "failover",
        Level.PROBLEM,
        f"the Sentinels would not agree on a failover: {view.quorum}",
        "When the primary dies, nothing takes its place: L2 counts as lost until it is back.",
        mend=(f"SENTINEL SET {service} quorum {all_ // 2 + 1}",) if high else (),
        at="every Sentinel" if high else "",
        otherwise="" if high else "bring Sentinels back: it takes more than half of them, and the quorum",
    )


def _held_for_dead(views: Sequence[SentinelView], down: Sequence[SentinelView], service: str) -> Finding:
    """The finding if Sentinels take the primary for dead. That they agree does not help: either a failover is coming,
    or none is possible."""
    return Finding(
        "failover",
        Level.PROBLEM,
        f"{len(down)} of {len(views)} Sentinels {_verb(down, 'holds', 'hold')} the primary for dead ({down[0].down})",
        "If it is dead, a failover is under way, or does not succeed. If it is not, the Sentinels can't reach it, or "
        "are not let in: then they may promote a replica beside it, or can't promote any when it dies.",
        otherwise="look whether it runs, and whether Sentinels reach it and can log in, there and at its replicas: "
        f"SENTINEL SET {service} auth-pass (and auth-user), at every Sentinel",
    )


def _disagreeing(views: Sequence[SentinelView], primary: Address) -> Iterator[Finding]:
    others = [view for view in views if view.primary and not view.names(primary)]
    if others:
        tie = 2 * sum(view.names(primary) for view in views) <= len(views)
        named = ", ".join(f"{v.sentinel} names {v.primary.get('ip')}:{v.primary.get('port')}" for v in others)
        yield Finding(
            "sentinels",
            Level.PROBLEM if tie else Level.ADVICE,
            f"{len(others)} of {len(views)} Sentinels {_verb(others, 'names', 'name')} another primary: {named}",
            "Here no more than half name any: which one is right they do not tell, and the nodes go by the latest "
            "failover, or by the address. What is written to the other one no node sees."
            if tie
            else "The nodes go by what most say. One that is left behind counts for no failover.",
            otherwise="if that lasts: SENTINEL REMOVE there, and SENTINEL MONITOR anew",
        )
    times_s = sorted({view.down_after_s for view in views if view.down_after_s is not None})
    if len(times_s) > 1:
        several = ", ".join(f"{each:g} s" for each in times_s)
        yield Finding(
            "sentinels",
            Level.ADVICE,
            f"down-after-milliseconds differs: {several}",
            "The least counts for min-replicas-max-lag; how long a failover takes, none of them says.",
            otherwise="set the same for every Sentinel, by SENTINEL SET",
        )


def too_soon(said: str, mend: tuple[str, ...], conf: tuple[str, ...], at: str) -> Finding:
    """The finding if a replica is promoted before a cut-off primary refuses writes."""
    return Finding(
        "failover",
        Level.ADVICE,
        said,
        f"A replica may be promoted before {LEAST_FAILOVER_S:g} s are over: no min-replicas-max-lag is short enough. A "
        "primary that was cut off takes writes, and renews leases, beside the one that was promoted.",
        ON_FAILOVER,
        mend,
        conf,
        at=at,
    )


def _verb(views: Sequence[SentinelView], one: str, several: str) -> str:
    return one if len(views) == 1 else several
