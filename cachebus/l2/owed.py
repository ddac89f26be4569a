"""Fill leases that could not be given back while L2 was out of reach. They are given back once it answers, since their
holder lives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from cachebus.base.clock import Clock
from cachebus.keys.key import Key

OWED_MAX: Final = 10_000
"""How many a store remembers, for all shards together: beyond it the oldest end by themselves."""
OWED_S: Final = 3600.0
"""For how long: no fill lease lasts longer."""


class Owed(NamedTuple):
    """A fill lease, for how many ms its key cools down (0: it is given back), and whether it does."""

    key: Key
    token: str
    px_ms: int
    cools_down: bool


class OwedFillLeases:
    """Those of one store."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._owed: dict[str, tuple[Key, float, bool]] = {}
        """By token, the oldest first."""
        self._tokens: dict[int, dict[str, None]] = {}
        """By shard."""

    def __len__(self) -> int:
        return len(self._owed)

    def of(self, shard: int) -> bool:
        """Whether there are any of a shard."""
        return shard in self._tokens

    def note(self, key: Key, token: str, *, px_ms: int, cools_down: bool) -> None:
        """One could not be given back, or let cool down; one that was to be held on ends by itself."""
        if px_ms and not cools_down:
            return
        if token in self._owed:
            self._forget(token)
        elif len(self._owed) >= OWED_MAX:
            self._forget(next(iter(self._owed)))
        self._owed[token] = key, self._clock() + (px_ms / 1000 if px_ms else OWED_S), cools_down
        self._tokens.setdefault(key.shard, {})[token] = None

    def take(self, shard: int) -> Iterator[Owed]:
        """Those of a shard of which there is still something to say; they are forgotten here."""
        now_s = self._clock()
        for token in self._tokens.pop(shard, {}):
            key, until_s, cools_down = self._owed.pop(token)
            if until_s > now_s:
                yield Owed(key, token, int((until_s - now_s) * 1000) if cools_down else 0, cools_down)

    def _forget(self, token: str) -> None:
        key, _, _ = self._owed.pop(token)
        tokens = self._tokens[key.shard]
        del tokens[token]
        if not tokens:
            del self._tokens[key.shard]
