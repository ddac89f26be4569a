"""Waiting until every node has applied a change.

It looks at what the nodes tell L2 of themselves until that proves it, or until the largest staleness bound of the fleet
is over. What proves it: `cachebus.core.membership`.
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

PROMPT_QUESTIONS = 4
"""Questions without a pause between them: each takes about as long as the event takes to the nodes."""
PAUSE_FIRST_S = 0.001
PAUSE_MAX_S = 0.05
CROWD_MIN = 4
CROWD_PAUSE_S = 0.002
"""Between two questions to a shard for which more than a few wait: they ask no more than 500 times a second."""
NAMES: frozenset[str | None] = frozenset({None, "nodes"})


def check_wait(wait: str | None) -> None:
    """Refuse what the argument `wait` of a write may not be; `ValueError`."""
    if wait not in NAMES:
        raise ValueError('wait must be None or "nodes"')


class _SharedQuestions:
    """The questions for one shard's nodes of one process: one at a time, shared by all who had asked when it
    began."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._begun = 0
        self._found: tuple[int, NodesReply] | None = None

    async def ask(self, question: Callable[[], Awaitable[NodesReply]]) -> NodesReply:
        """The nodes as they are after this call; what `question` raises."""
        asked_at = self._begun
        self._waiting += 1
        try:
            async with self._turn:
                if self._found is None or self._found[0] <= asked_at:
                    if self._waiting > CROWD_MIN:
                        await asyncio.sleep(CROWD_PAUSE_S)
                    self._begun += 1
                    self._found = self._begun, await question()
                return self._found[1]
        finally:
            self._waiting -= 1


class _Pace:
    """How long one waiter pauses between its questions: at first not at all, then longer and longer."""

    def __init__(self) -> None:
        self._questions = 0
        self._pause_s = PAUSE_FIRST_S

    def slow_down(self) -> None:
        """L2 does not answer: no more questions without a pause."""
        self._questions = PROMPT_QUESTIONS

    async def pause(self, most_s: float) -> None:
        """Pause before the next question, `most_s` at most."""
        self._questions += 1
        if self._questions < PROMPT_QUESTIONS:
            await asyncio.sleep(0)
            return
        await asyncio.sleep(min(self._pause_s, max(0.0, most_s)))
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)


class Confirmer:
    """Waits for the nodes, of a store that somebody else has opened."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        bound_s: float,
        memberships: Sequence[MembershipView],
        *,
        keep_without_l2: bool,
    ) -> None:
        """`bound_s`: the staleness bound of this process's settings. `memberships`: by shard, what is known of its
        nodes. `keep_without_l2`: whether this process's settings have nodes keep what they load without L2."""
        self._store = store
        self._clock = clock
        self._memberships = memberships
        self._keep_without_l2 = keep_without_l2
        self._questions = [_SharedQuestions() for _ in memberships]
        self._largest_bound_s = bound_s
        """The largest staleness bound that this process has ever heard of: what L2 says of it is lost with L2."""

    async def wait(self, index: int, change: Change, caller: Callable[[], Caller]) -> Confirmed:
        """Return once no node can serve what the change replaced; to be called as soon as its script has replied.

        That is when every node has applied it; or the fleet's largest staleness bound from now, whatever becomes of L2
        meanwhile.
        """
        began_s, bound_s = self._clock(), first_bound_s(self._largest_bound_s, change, caller())
        found, pace = Confirmed(), _Pace()
        while (left_s := began_s + bound_s - self._clock()) > 0:
            reply = await self._ask_nodes(index, caller, left_s)
            if reply is None:
                pace.slow_down()
            else:
                bound_s = self._largest_bound_s = largest_bound_s(reply, max(bound_s, self._largest_bound_s))
                found, proven = self._judge(index, change, reply, caller())
                if proven:
                    break
            await pace.pause(began_s + bound_s - self._clock())
        return found

    async def _ask_nodes(self, index: int, caller: Callable[[], Caller], timeout_s: float) -> NodesReply | None:
        """What L2 knows of the shard's nodes; None where it does not answer."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._questions[index].ask(lambda: self._store.nodes(index, caller()))
        except (CacheBusError, TimeoutError):
            return None

    def _judge(self, index: int, change: Change, reply: NodesReply, caller: Caller) -> tuple[Confirmed, bool]:
        """Who has applied the change, and whether nobody else can serve what it replaced."""
        self._keep_without_l2 = keeps_without_l2(reply, self._keep_without_l2 or caller.largest.keeps_without_l2)
        after_s = complete_after_s(self._largest_bound_s, keep_without_l2=self._keep_without_l2)
        return judged(self._memberships[index], reply, change, after_s, self._clock())
