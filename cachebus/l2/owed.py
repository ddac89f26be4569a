"""Leases that could not be given back while L2 was out of reach: given back once it answers, as their holder lives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from cachebus.clock import Clock
from cachebus.keys import Key

OWED_MAX: Final = 10_000
"""How many a shard remembers: beyond it the oldest end by themselves."""
OWED_S: Final = 3600.0
"""For how long: no lease lasts longer."""


class Owed(NamedTuple):
    """A lease, for how many ms it is to rest (0: it is given back), and whether it rests."""

    key: Key
    token: str
    px_ms: int
    rests: str


class OwedLeases:
    """Those of one shard."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._owed: dict[str, tuple[Key, float, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._owed)

    def note(self, key: Key, token: str, px_ms: int, rests: str) -> None:
        """One could not be given back, or let rest; one that was to be held on ends by itself."""
        if px_ms and rests == "0":
            return
        if len(self._owed) >= OWED_MAX:
            del self._owed[next(iter(self._owed))]
        self._owed[token] = key, self._clock() + (px_ms / 1000 if px_ms else OWED_S), rests

    def taken(self) -> Iterator[Owed]:
        """Those of which there is still something to say; they are forgotten here."""
        owed, self._owed = self._owed, {}
        now_s = self._clock()
        for token, (key, until_s, rests) in owed.items():
            if until_s > now_s:
                yield Owed(key, token, int((until_s - now_s) * 1000) if rests == "1" else 0, rests)
