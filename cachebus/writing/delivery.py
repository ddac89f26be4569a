"""Carries one change out: L2 in one step, then this node's own memory, then the bus."""

from __future__ import annotations

from collections.abc import Callable

from cachebus.core.node import Node
from cachebus.core.ports import Bus, Change, Store
from cachebus.keys.plan import Plan
from cachebus.wire import event as events
from cachebus.writing.resend_buffer import ResendBuffer


class Delivery:
    """Tells all who must hear of a change, in this order:

    1. L2, which gives it its place in the shard's history. `L2Unavailable`: nobody knows whether it has the change.
    2. This node, before its caller is told: own writes hold here at once.
    3. The bus, where the script has not published by itself.
    """

    def __init__(
        self, node: Node, store: Store, bus: Bus, resend_buffer: ResendBuffer, nudge: Callable[[int], None]
    ) -> None:
        """`nudge`: has a shard probed soon."""
        self._node = node
        self._store = store
        self._bus = bus
        self._resend_buffer = resend_buffer
        self._nudge = nudge

    async def invalidate(self, plan: Plan, *, probe: bool = False) -> Change:
        """Replace what the plan addresses. `probe`: the event asks all nodes to probe at once."""
        called_s = self._node.clock()
        body, caller = plan.body(self._node.id, probe=probe), self._node.caller(plan.shard)
        change = await self._store.invalidate(plan.shard, caller, plan.keys, plan.scopes, body)
        await self.spread(plan, change, body, called_s)
        return change

    async def guard(self, plan: Plan, token: str, px_ms: int, *, probe: bool = False) -> Change:
        """Invalidate, and put the guard's token on all of it for `px_ms`; with 0 take the token away. Nothing is done
        where too much is guarded already (`stored` is False)."""
        called_s = self._node.clock()
        body, caller = plan.body(self._node.id, probe=probe), self._node.caller(plan.shard)
        change = await self._store.guard(plan.shard, caller, plan.keys, plan.scopes, token, px_ms, body)
        if change.stored:
            await self.spread(plan, change, body, called_s)
        return change

    async def spread(self, plan: Plan, change: Change, body: bytes, called_s: float) -> None:
        """L2 has a change that was called at `called_s`: apply it here, keep it for a repetition, publish it."""
        self._apply(plan, change, body)
        self._resend_buffer.note(plan, change.epoch, called_s)
        if not self._bus.store_publishes:
            await self._bus.publish(plan.shard, change.head + body)

    def _apply(self, plan: Plan, change: Change, body: bytes) -> None:
        self._node.wrote(plan.shard, change, body, events.WritePart([key.l1 for key in plan.keys], plan.scopes))
        shard = self._node.shards[plan.shard]
        if shard.epoch != change.epoch or shard.applied < change.seq:
            self._nudge(plan.shard)

    def doubt(self, plan: Plan) -> None:
        """Nobody knows whether the change happened: believe nothing that it would have replaced."""
        self._node.forget(plan.shard, plan.keys, plan.scopes)
        if plan.scopes:
            self._nudge(plan.shard)  # until a probe is answered, L2 has to judge all that lies in them
