"""Waiting until every node has applied a change, or can't serve its memory any more.

Each question of a node to L2 leaves its line in the shard's register: how far it has applied. A node that has not
applied a change holds a lease only from a probe that was sent before the change's script had replied: D after that
reply it has lapsed, whatever became of the node. An earlier end must be proven, by this process's own clock alone:

- A node with a live lease has sent a probe within D, so its line is in any register that is older than D. A register
  that was lost (evicted, flushed, pruned, of another epoch) begins anew under another name. This process has to have
  known the present name for D.
- A node whose line has stood still for D has sent no probe in that time, so its lease has lapsed. That is how those
  who were killed cost one wait of D, and not every wait until their lines are pruned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cachebus.clock import Clock
from cachebus.errors import CacheBusError
from cachebus.ports import Caller, Place, Register, Store

PROMPT_LOOKS = 4
"""Looks without a pause between them: each takes about as long as the event takes to the nodes."""
PAUSE_FIRST_S = 0.001
PAUSE_MAX_S = 0.05
NAMES: frozenset[str | None] = frozenset({None, "nodes"})


class Confirmed(NamedTuple):
    """The ids of the nodes that have applied a change, and of those whose lease has lapsed instead."""

    confirmed: tuple[str, ...] = ()
    lapsed: tuple[str, ...] = ()


class Watch:
    """What this process has seen of one shard's register, and since when, on its own clock."""

    __slots__ = ("_lines", "name", "since_s")

    def __init__(self) -> None:
        self.name = b""
        self.since_s = float("inf")
        self._lines: dict[str, tuple[tuple[int, int], float]] = {}

    def saw(self, name: bytes, now_s: float) -> None:
        """An answer that came now has told the register's name."""
        if name != self.name:
            self.name, self.since_s = name, now_s if name else float("inf")
            self._lines = {}

    def looked(self, register: Register, now_s: float) -> None:
        """An answer that came now has told every line."""
        self.saw(register.name, now_s)
        known = self._lines
        self._lines = {
            node: known[node] if node in known and known[node][0] == line else (line, now_s)
            for node, line in register.lines.items()
        }

    def still_s(self, node: str, now_s: float) -> float:
        """For how long at least the node's line has not moved."""
        return now_s - self._lines[node][1]


def check_wait(wait: str | None) -> None:
    """The argument `wait` of a write; `ValueError`."""
    if wait not in NAMES:
        raise ValueError('wait must be None or "nodes"')


def judged(watch: Watch, register: Register, place: Place, bound_s: float, now_s: float) -> tuple[Confirmed, bool]:
    """Who has applied the change at `place` by an answer that came now, and whether nobody else can serve what it
    replaced."""
    watch.looked(register, now_s)
    same = register.epoch == place.epoch
    least = place.seq if same else 1  # who has entered a later epoch has dropped everything; its line begins at 0
    confirmed = tuple(node for node, (applied, _) in register.lines.items() if applied >= least)
    lapsed = tuple(node for node, (applied, _) in register.lines.items() if applied < least)
    complete = same and bool(register.lines) and now_s - watch.since_s >= bound_s
    return Confirmed(confirmed, lapsed), complete and all(watch.still_s(n, now_s) >= bound_s for n in lapsed)


class Confirmer:
    """Waits for the nodes, of a store that somebody else has opened."""

    def __init__(self, store: Store, clock: Clock, bound_s: float, watches: Sequence[Watch]) -> None:
        self._store = store
        self._clock = clock
        self._bound_s = bound_s
        self._watches = watches

    async def wait(self, shard: int, place: Place, caller: Callable[[], Caller]) -> Confirmed:
        """Return once every node has applied the change at `place`, or D from now, when no other can serve its memory;
        to be called as soon as the change's script has replied. What becomes of L2 meanwhile changes nothing in that.
        """
        until_s = self._clock() + self._bound_s
        found, looks, pause_s = Confirmed(), 0, PAUSE_FIRST_S
        while (left_s := until_s - self._clock()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    register = await self._store.register(shard, caller())
            except (CacheBusError, TimeoutError):
                looks = PROMPT_LOOKS
            else:
                found, done = judged(self._watches[shard], register, place, self._bound_s, self._clock())
                if done:
                    break
            looks += 1
            if looks < PROMPT_LOOKS:
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(min(pause_s, max(0.0, until_s - self._clock())))
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
        return found
