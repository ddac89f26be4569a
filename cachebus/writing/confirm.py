"""Waiting until every node has applied a change, or can't serve its memory any more.

Each question of a node to L2 leaves its line there: how far it has applied which epoch. A node that has not applied a
change serves its memory only under a lease from a probe that was sent before the change's script had replied, or for D
after a load of its own, which began before it: D after that reply it serves nothing that the change replaced, whatever
became of it. D is the largest that any node of the fleet has. An earlier end must be proven:

1. Every line has applied the change. A line that stands still proves nothing: its node may be cut off from L2, and load
   for itself. So who was killed costs each wait D, until its line is removed: by a minute's silence, or by hand.
2. No line is missing. A set that was lost (evicted, flushed, of another epoch), or that somebody who may live was taken
   out of, has another name from then on. A node with a lease has asked L2 within D, so its line is in any set that is
   older. One without, since it is cut off, may still load for itself: only after `SILENT_S` more has it not reached L2
   for so long that nobody waits for it, unless no node keeps what it loads alone. This process has to have known the
   present name for that long, by its own clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from cachebus.clock import Clock
from cachebus.errors import CacheBusError
from cachebus.ports import SILENT_S, Caller, Change, NodesReply, Store

PROMPT_LOOKS = 4
"""Looks without a pause between them: each takes about as long as the event takes to the nodes."""
PAUSE_FIRST_S = 0.001
PAUSE_MAX_S = 0.05
FEW = 4
GAP_S = 0.002
"""Between two looks at a shard for which more than a few wait: they ask no more than 500 times a second."""
NAMES: frozenset[str | None] = frozenset({None, "nodes"})


class Confirmed(NamedTuple):
    """The ids of the nodes that have applied a change, and of those that have not, and were waited for."""

    confirmed: tuple[str, ...] = ()
    lapsed: tuple[str, ...] = ()


class Watch:
    """The name of one shard's set of lines, and since when this process knows it, on its own clock."""

    __slots__ = ("name", "since_s")

    def __init__(self) -> None:
        self.name = b""
        self.since_s = float("inf")

    def saw(self, name: bytes, now_s: float) -> None:
        """An answer that came now has told the name."""
        if name != self.name:
            self.name, self.since_s = name, now_s if name else float("inf")


def check_wait(wait: str | None) -> None:
    """The argument `wait` of a write; `ValueError`."""
    if wait not in NAMES:
        raise ValueError('wait must be None or "nodes"')


def first_bound_s(own_s: float, change: Change, caller: Caller) -> float:
    """The largest staleness bound of the fleet as far as this process and the change's script have heard."""
    return max(own_s, change.bound_ms / 1000, caller.bound_ms / 1000)


def largest_bound_s(reply: NodesReply, own_s: float) -> float:
    """The largest staleness bound of the fleet: of this process, of every node whose line is there, or ever was."""
    return max(own_s, reply.bound_ms / 1000, *(line.about.bound_ms / 1000 for line in reply.lines.values()))


def complete_after_s(bound_s: float, *, keep_alone: bool) -> float:
    """How long a set of lines must have had its name to lack no node that counts. `keep_alone`: whether nodes keep what
    they load while L2 is out of reach."""
    return bound_s + (SILENT_S if keep_alone else 0.0)


def keeps_alone(reply: NodesReply, own: bool) -> bool:
    """Whether any node of the fleet keeps what it loads while L2 is out of reach: as far as this process has heard, one
    whose line is there, or ever was."""
    return own or reply.alone or any(line.about.keeps_alone for line in reply.lines.values())


def judged(watch: Watch, reply: NodesReply, change: Change, after_s: float, now_s: float) -> tuple[Confirmed, bool]:
    """Who has applied the change by an answer that came now, and whether nobody else can serve what it replaced.
    `after_s`: as `complete_after_s` says."""
    watch.saw(reply.name, now_s)
    confirmed: list[str] = []
    lapsed: list[str] = []
    for node, line in reply.lines.items():
        # Who has entered a later epoch than the change's has dropped everything.
        behind = line.epoch != reply.epoch or (line.epoch == change.epoch and line.applied < change.seq)
        (lapsed if behind else confirmed).append(node)
    complete = reply.epoch == change.epoch and bool(reply.lines) and now_s - watch.since_s >= after_s
    return Confirmed(tuple(confirmed), tuple(lapsed)), complete and not lapsed


class _Looks:
    """The looks of one process at one shard's lines: one at a time, shared by all who had asked when it began."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._begun = 0
        self._found: tuple[int, NodesReply] | None = None

    async def look(self, ask: Callable[[], Awaitable[NodesReply]]) -> NodesReply:
        """The lines as they are after this call; what `ask` raises."""
        asked_at = self._begun
        self._waiting += 1
        try:
            async with self._turn:
                if self._found is None or self._found[0] <= asked_at:
                    if self._waiting > FEW:
                        await asyncio.sleep(GAP_S)
                    self._begun += 1
                    self._found = self._begun, await ask()
                return self._found[1]
        finally:
            self._waiting -= 1


class Confirmer:
    """Waits for the nodes, of a store that somebody else has opened."""

    def __init__(
        self, store: Store, clock: Clock, bound_s: float, watches: Sequence[Watch], *, keep_alone: bool
    ) -> None:
        """`keep_alone`: whether nodes keep what they load while L2 is out of reach, by this process's own settings."""
        self._store = store
        self._clock = clock
        self._bound_s = bound_s
        self._watches = watches
        self._keep_alone = keep_alone
        self._looks = [_Looks() for _ in watches]
        self._heard_s = bound_s
        """The largest staleness bound that this process has ever heard of: what L2 says of it is lost with L2."""

    async def wait(self, shard: int, change: Change, caller: Callable[[], Caller]) -> Confirmed:
        """Return once every node has applied the change, or the fleet's largest staleness bound from now, when no other
        can serve what it replaced; to be called as soon as the change's script has replied. What becomes of L2
        meanwhile changes nothing in that."""
        began_s, bound_s = self._clock(), first_bound_s(self._heard_s, change, caller())
        found, looks, pause_s = Confirmed(), 0, PAUSE_FIRST_S
        while (left_s := began_s + bound_s - self._clock()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    reply = await self._looks[shard].look(lambda: self._store.nodes(shard, caller()))
            except (CacheBusError, TimeoutError):
                looks = PROMPT_LOOKS
            else:
                bound_s = self._heard_s = largest_bound_s(reply, bound_s)
                self._keep_alone = keeps_alone(reply, self._keep_alone or caller().alone)
                after_s = complete_after_s(bound_s, keep_alone=self._keep_alone)
                found, done = judged(self._watches[shard], reply, change, after_s, self._clock())
                if done:
                    break
            looks += 1
            if looks < PROMPT_LOOKS:
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(min(pause_s, max(0.0, began_s + bound_s - self._clock())))
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
        return found
