"""What Sentinels say of the primary that they watch over, and of its replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cachebus.cli.doctor.facts import Known, Watched, asked, texts, whole
from cachebus.resp import SENTINEL, Address, Places

_AWAY: Final = frozenset(("disconnected", "o_down", "s_down"))


@dataclass(frozen=True, slots=True)
class View:
    """What one Sentinel says."""

    sentinel: Address
    primary: Mapping[str, str]
    """As of SENTINEL MASTER; empty where it does not say."""
    replicas: Sequence[Mapping[str, str]]
    refused: str = ""
    """Why it does not say."""

    def names(self, primary: Address) -> bool:
        """Whether it watches over that one."""
        return (self.primary.get("ip"), self.primary.get("port")) == (primary.host, str(primary.port))


async def views_of(places: Places) -> list[View]:
    """What each of them says."""
    return list(await asyncio.gather(*(_view(each, places.service) for each in places.addresses)))


async def _view(sentinel: Address, service: str) -> View:
    (flat, refused), (rows, hidden) = await asked(
        sentinel, ("SENTINEL", "MASTER", service), ("SENTINEL", "REPLICAS", service)
    )
    return View(sentinel, texts(flat), [texts(row) for row in rows or ()], refused or hidden)


def watched_by(views: Sequence[View], primary: Address) -> Watched:
    """The least time-out of all that answer, since any may begin a failover; every replica that any of them knows."""
    told = [view for view in views if not view.refused]
    agreeing = [view for view in told if view.names(primary)] or told
    times_s = [after_ms / 1000 for view in told if (after_ms := down_after_ms(view)) is not None]
    known: list[Known] | None = _merged(agreeing, primary) if told else None
    return Watched(SENTINEL, min(times_s, default=None), known, "" if told else views[0].refused)


def down_after_ms(view: View) -> int | None:
    """After how long a silence it holds the primary for dead."""
    return whole(view.primary.get("down-after-milliseconds"))


def _merged(views: Sequence[View], primary: Address) -> list[Known]:
    """One that any Sentinel reaches is there."""
    found: dict[Any, Known] = {}
    for view in views:
        for row in view.replicas:
            place = row.get("ip", ""), whole(row.get("port")) or 0
            flags = frozenset(row.get("flags", "").split(","))
            away = ", ".join(sorted(flags & _AWAY))
            before = found.get(place)
            found[place] = Known(
                replace(primary, host=place[0], port=place[1]), away=away and (away if before is None else before.away),
                promotable=row.get("slave-priority") != "0",
            )  # fmt: skip
    return list(found.values())
