"""What Sentinels say: of a primary, of its replicas, and of each other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cachebus.errors import CacheBusError
from cachebus.resp import SENTINEL, Address, Endpoints
from cachebus.tools.doctor.asking import ASK_TIMEOUT_S, Asker, texts
from cachebus.tools.doctor.facts import KnownReplica, Watched, whole

_AWAY: Final = frozenset(("disconnected", "o_down", "s_down"))
_DOWN: Final = frozenset(("o_down", "s_down"))


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
    id: str = ""
    """Its id, which it has under each of its names; "" where it does not say."""
    others: tuple[Address, ...] = ()
    """What else the URL calls it."""
    sentinels: Sequence[Mapping[str, str]] = ()
    """The other Sentinels that it knows, also those that it may never hear of again; none where it does not say."""

    def names(self, primary: Address) -> bool:
        """Whether it watches this primary."""
        return (self.primary.get("ip"), self.primary.get("port")) == (primary.host, str(primary.port))

    def names_the_same_as(self, other: SentinelView) -> bool:
        """Whether both name one server, by whatever address: a server's run id is its own."""
        own = self.primary.get("runid")
        return bool(own) and own == other.primary.get("runid")

    def places_of_all(self) -> set[tuple[str, str]]:
        """Where the primary that it watches is, and each of the replicas that it knows."""
        return {(row.get("ip", ""), row.get("port", "")) for row in (self.primary, *self.replicas)}

    @property
    def known_sentinels(self) -> int:
        """How many Sentinels it knows, itself included."""
        return (whole(self.primary.get("num-other-sentinels")) or 0) + 1

    @property
    def refusal(self) -> str:
        """What it refuses, with its address; "" for nothing."""
        refused = self.refused or self.quorum_refused
        return f"{self.sentinel}: {refused}" if refused else ""

    @property
    def quorum_set(self) -> int:
        """How many must hold the primary for dead before it begins a failover; 0 where it does not say."""
        return whole(self.primary.get("quorum")) or 0

    @property
    def lost_sentinels(self) -> list[tuple[str, str]]:
        """Where those of the others are, or were, that it does not hear of."""
        away = [row for row in self.sentinels if not _DOWN.isdisjoint(row.get("flags", "").split(","))]
        return [(row.get("ip", ""), row.get("port", "")) for row in away]

    @property
    def down(self) -> str:
        """Why it takes the primary for dead, in its words; "" if it does not."""
        return ", ".join(sorted(_DOWN & set(self.primary.get("flags", "").split(","))))

    @property
    def down_after_s(self) -> float | None:
        """After how many silent seconds it takes the primary for dead."""
        return self._seconds("down-after-milliseconds")

    @property
    def attempt_s(self) -> float | None:
        """After how many seconds it gives an attempt at a failover up."""
        return self._seconds("failover-timeout")

    def _seconds(self, option: str) -> float | None:
        ms = whole(self.primary.get(option))
        return None if ms is None else ms / 1000


async def views_of(endpoints: Endpoints) -> list[SentinelView]:
    """The view of each Sentinel, once, however often the URL names it."""
    views = await asyncio.gather(*(_view(each, endpoints.service) for each in endpoints.addresses))
    by_id: dict[object, SentinelView] = {}
    for view in views:
        known = by_id.setdefault(view.id or view.sentinel, view)
        if known is not view:
            by_id[view.id] = replace(known, others=(*known.others, view.sentinel))
    return list(by_id.values())


async def _view(sentinel: Address, service: str) -> SentinelView:
    try:
        asker = await Asker.open(sentinel, ASK_TIMEOUT_S)
        try:
            flat, refused = await asker.ask("SENTINEL", "MASTER", service)
            rows, hidden = await asker.ask("SENTINEL", "REPLICAS", service)
            _, quorum = await asker.ask("SENTINEL", "CKQUORUM", service)
            known, _ = await asker.ask("SENTINEL", "SENTINELS", service)
            own_id, _ = await asker.ask("SENTINEL", "MYID")
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
        (own_id or b"").decode(errors="replace"),
        sentinels=[texts(row) for row in known or ()],
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


def verb(views: Sequence[SentinelView], one: str, several: str) -> str:
    """What is said of one, or of several."""
    return one if len(views) == 1 else several
