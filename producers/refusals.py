"""Primaries that answer, and refuse writes: they lack replicas, are read-only or full, or have lost these slots."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Final

from cachebus.base.clock import Clock

CALLED_S: Final = 10.0
"""How long only a write tells that a full primary takes writes again. Who waits for it writes at least twice in this
time; later a probe is believed."""
FULL: Final = "OOM"
"""The error of a full server. It still takes what makes room, as a probe does, so a probe proves nothing."""


class Refusals:
    """Which primaries refused the last write, or probe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_place: dict[Hashable, float] = {}
        """Until when only a write tells that a primary takes writes again, by the primary's address."""

    def __contains__(self, place: Hashable) -> bool:
        return place in self._by_place

    def only(self, places: Collection[Hashable]) -> None:
        """Forget all other primaries."""
        for place in self._by_place.keys() - places:
            del self._by_place[place]

    def refused(self, places: Collection[Hashable], error: BaseException, *, looked: bool = False) -> None:
        """These primaries have refused: where the shard was expected, and where the request went. `looked`: it was a
        probe, and no write."""
        for place in places:
            self._refused(place, error, looked)

    def _refused(self, place: Hashable, error: BaseException, looked: bool) -> None:
        known = self._by_place.get(place)
        stays = known if known is not None and looked else float("-inf")
        if not looked and FULL in str(error):
            stays = self._clock() + CALLED_S
        self._by_place[place] = stays

    def took(self, place: Hashable, *, looked: bool = False) -> None:
        """The primary has taken a write, or, with `looked`, a probe."""
        known = self._by_place.get(place)
        if known is not None and not (looked and self._clock() < known):
            del self._by_place[place]


def reason_of(error: BaseException) -> str:
    """The reason of a refusal, for people."""
    if str(error).startswith("MOVED "):
        return f"the slots lie elsewhere ({error}): the URL of a Cluster begins with redis+cluster://"
    return str(error)


def named(place: object, error: BaseException) -> str:
    """The reason, with the primary that has given it."""
    why = reason_of(error)
    return why if place is None or str(place) in why else f"{place}: {why}"
