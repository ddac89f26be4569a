"""Primaries that answer, and take nothing: without replicas, read-only, full, or no place of these slots any more."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Final

from cachebus.base.clock import Clock

CALLED_S: Final = 10.0
"""Whoever waits tries again at least twice in this time; where nobody does, a look is believed from then on."""
FULL: Final = "OOM"
"""What a full server says: it still takes what makes room, as a look does."""


class Refusals:
    """Which primaries took nothing when they were asked last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_place: dict[Hashable, float] = {}
        """Until when only a call tells that it takes again."""

    def __contains__(self, place: Hashable) -> bool:
        return place in self._by_place

    def only(self, places: Collection[Hashable]) -> None:
        """There are no others any more."""
        for place in self._by_place.keys() - places:
            del self._by_place[place]

    def refused(self, places: Collection[Hashable], error: BaseException, *, looked: bool = False) -> None:
        """These took nothing now: where a shard was asked for, and where it was sent to. `looked`: nobody had anything
        for them, they were only looked at."""
        for place in places:
            self._refused(place, error, looked)

    def _refused(self, place: Hashable, error: BaseException, looked: bool) -> None:
        known = self._by_place.get(place)
        stays = known if known is not None and looked else float("-inf")
        if not looked and FULL in str(error):
            stays = self._clock() + CALLED_S
        self._by_place[place] = stays

    def took(self, place: Hashable, *, looked: bool = False) -> None:
        """It took something now, or as much as a look is."""
        known = self._by_place.get(place)
        if known is not None and not (looked and self._clock() < known):
            del self._by_place[place]


def told(error: BaseException) -> str:
    """Why nothing is taken, for people."""
    if str(error).startswith("MOVED "):
        return f"the slots lie elsewhere ({error}): the URL of a Cluster begins with redis+cluster://"
    return str(error)


def named(place: object, error: BaseException) -> str:
    """The same, with the primary that has said it."""
    why = told(error)
    return why if place is None or str(place) in why else f"{place}: {why}"
