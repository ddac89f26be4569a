"""Carries one change out: L2 in one step, then this node's own memory, then the bus."""

from __future__ import annotations

from cachebus.core.ports import Change
from cachebus.core.requests import GuardRequest
from cachebus.keys.plan import Plan
from cachebus.reading.fetch import Fetcher
from cachebus.writing.tell import Teller


class Delivery:
    """Tells all who must hear of a change, in this order:

    1. L2, which gives it its position in the shard's history. `L2Unavailable`: nobody knows whether it has the change.
    2. This node, before its caller is told: own writes hold here at once.
    3. The bus, where the script has not published by itself.
    """

    def __init__(self, fetcher: Fetcher, teller: Teller) -> None:
        self.refusals = fetcher.refusals
        self._node = fetcher.node
        self._store = fetcher.store
        self._nudge = fetcher.nudge
        self._teller = teller

    async def invalidate(self, plan: Plan, *, probe: bool = False) -> Change:
        """Replace what the plan addresses. `probe`: the event asks all nodes to probe at once."""
        called_s = self._node.clock()
        body, caller = plan.body(self._node.id, probe=probe), self._node.caller(plan.shard)
        with self.refusals.of("invalidations"):
            change = await self._store.invalidate(plan.shard, caller, plan.keys, plan.scopes, body)
        await self.spread(plan, change, body, called_s)
        return change

    async def guard(self, plan: Plan, token: str, px_ms: int, *, probe: bool = False) -> Change:
        """Invalidate, and put the guard's token on all of it for `px_ms`; with 0 take the token away. Nothing is done
        where too much is guarded already (`done` is False)."""
        called_s = self._node.clock()
        body, caller = plan.body(self._node.id, probe=probe), self._node.caller(plan.shard)
        request = GuardRequest(plan.keys, plan.scopes, token, px_ms)
        with self.refusals.of("write guards"):
            change = await self._store.guard(plan.shard, caller, request, body)
        if change.done:
            await self.spread(plan, change, body, called_s)
        return change

    async def spread(self, plan: Plan, change: Change, body: bytes, called_s: float) -> None:
        """L2 has a change that was called at `called_s`: apply it here, and tell of it."""
        self._apply(plan, change, body)
        await self._teller.tell(plan, change, body, called_s)

    def _apply(self, plan: Plan, change: Change, body: bytes) -> None:
        self._node.wrote(plan.shard, change, body, plan.part(self._node.id))
        shard = self._node.shards[plan.shard]
        if shard.epoch != change.epoch or shard.applied < change.seq:
            self._nudge(plan.shard)

    def doubt(self, plan: Plan) -> None:
        """Nobody knows whether the change happened: believe nothing that it would have replaced."""
        self._node.forget(plan.shard, plan.keys, plan.scopes)
        if plan.scopes:
            self._nudge(plan.shard)  # until a probe is answered, L2 has to judge all that lies in them
