"""Waiting until every node has applied a change: looks at the nodes' rows until they prove it, or its bound is over.

What proves it: `cachebus.core.membership`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cachebus.base.clock import Clock
from cachebus.core.membership import (
    Confirmed,
    MembershipView,
    complete_after_s,
    first_bound_s,
    judged,
    keeps_without_l2,
    largest_bound_s,
)
from cachebus.core.ports import Caller, Change, NodesReply, Store
from cachebus.errors import CacheBusError

PROMPT_LOOKS = 4
"""Looks without a pause between them: each takes about as long as the event takes to the nodes."""
PAUSE_FIRST_S = 0.001
PAUSE_MAX_S = 0.05
FEW = 4
GAP_S = 0.002
"""Between two looks at a shard for which more than a few wait: they ask no more than 500 times a second."""
NAMES: frozenset[str | None] = frozenset({None, "nodes"})


def check_wait(wait: str | None) -> None:
    """The argument `wait` of a write; `ValueError`."""
    if wait not in NAMES:
        raise ValueError('wait must be None or "nodes"')


class _Looks:
    """The looks of one process at one shard's rows: one at a time, shared by all who had asked when it began."""

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
        self, store: Store, clock: Clock, bound_s: float, views: Sequence[MembershipView], *, keep_without_l2: bool
    ) -> None:
        """`keep_without_l2`: whether this process's settings have nodes keep what they load without L2."""
        self._store = store
        self._clock = clock
        self._bound_s = bound_s
        self._views = views
        self._keep_without_l2 = keep_without_l2
        self._looks = [_Looks() for _ in views]
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
                self._keep_without_l2 = keeps_without_l2(reply, self._keep_without_l2 or caller().keeps_without_l2)
                after_s = complete_after_s(bound_s, keep_without_l2=self._keep_without_l2)
                found, done = judged(self._views[shard], reply, change, after_s, self._clock())
                if done:
                    break
            looks += 1
            if looks < PROMPT_LOOKS:
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(min(pause_s, max(0.0, began_s + bound_s - self._clock())))
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
        return found
