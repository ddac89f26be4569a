"""The path of a write: L2 in one script, then the own L1, then the bus."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cachebus.base.clock import Clock
from cachebus.core.membership import Confirmed
from cachebus.core.ports import Bus, Change
from cachebus.errors import InvalidationFailed, L2Unavailable
from cachebus.keys.key import Key, Keyspace
from cachebus.keys.plan import Plan
from cachebus.policy import Rules
from cachebus.reading.fetch import Fetcher
from cachebus.receipt import NOTHING_DONE, Receipt
from cachebus.settings import RESEND_MAX_BYTES
from cachebus.wire import event as events
from cachebus.wire.packing import keep_ms, pack
from cachebus.writing.confirm import Confirmer
from cachebus.writing.pending import Pending
from cachebus.writing.resend_buffer import ResendBuffer, born_s

NOBODY_ASKED = Confirmed()


class Writer:
    """Writes and invalidations of one cache."""

    def __init__(
        self,
        fetcher: Fetcher,
        bus: Bus,
        clock: Clock,
        nudge: Callable[[int], None],
        pending: Pending,
        *,
        enabled: bool,
        resend_max_bytes: int = RESEND_MAX_BYTES,
    ) -> None:
        self._fetch = fetcher
        self._node = fetcher.node
        self._store = fetcher.store
        self._bus = bus
        self._clock = clock
        self._nudge = nudge
        self._enabled = enabled
        keyspace = Keyspace(len(self._node.shards))
        self.resend_buffer = ResendBuffer(clock, keyspace, resend_max_bytes, self._node.counters)
        self.pending = pending
        pending.deliver = self._deliver
        self._confirmer = Confirmer(
            self._store, clock, self._node.bound_s, self._node.views, keep_without_l2=self._node.keep_without_l2
        )

    # -- writes ---------------------------------------------------------------------------------------------------

    async def invalidate(self, plan: Plan, *, wait: bool = False) -> Receipt:
        """Replace all that the plan addresses, everywhere; `InvalidationFailed` when that is not sure. `wait`: return
        when no node can serve what was replaced."""
        if not self._enabled:
            return NOTHING_DONE
        self._node.counters.invalidations += 1
        change: Change | None
        if self.pending.holds_up(plan.shard):
            change = await self._queued(plan, None)
        else:
            try:
                change = await self._deliver(plan, probe=wait)
            except L2Unavailable as error:
                self._node.counters.l2_errors += 1
                change = await self._queued(plan, error)
            except BaseException:
                self._forget(plan)  # cancelled: it may have happened
                raise
        return await self._receipt_for(plan, change, wait=wait)

    async def _receipt_for(self, plan: Plan, change: Change | None, *, wait: bool) -> Receipt:
        """The receipt of a change, or of one that waits for L2 (None)."""
        if change is None:
            return Receipt(plan.shard, NOTHING_DONE.epoch, 0, status="pending", stored=False, targets=plan.targets)
        return await self._confirmed(plan, change) if wait else self._receipt(plan, change)

    async def _deliver(self, plan: Plan, *, probe: bool = False) -> Change:
        """Tell L2, this node and the bus; `L2Unavailable` when that is not sure."""
        called_s = self._clock()
        body, caller = plan.body(self._node.id, probe=probe), self._node.caller(plan.shard)
        change = await self._store.invalidate(plan.shard, caller, plan.keys, plan.scopes, body)
        await self._happened(plan, change, body, called_s)
        return change

    async def _queued(self, plan: Plan, error: L2Unavailable | None) -> Change | None:
        """Have the plan wait for L2, behind those that do; where it stands if that was soon, None if it waits still.
        `InvalidationFailed` when it may not wait, or has no room."""
        waiting = self.pending.add(plan)
        self._forget(plan)
        if waiting is None:
            self._node.counters.invalidations_failed += 1
            why = error or "the queue of pending invalidations is full"
            raise InvalidationFailed(f"the invalidation is not sure to have happened: {why}") from error
        return None if error is not None else await self.pending.delivered(waiting)

    async def repeat(self, shard: int) -> None:
        """Repeat what was acknowledged of a shard in other epochs since its present one was born: whoever did that had
        been deposed by then. `L2Unavailable` when that is not sure to have happened; the next try repeats the rest."""
        node = self._node
        since_s = born_s(node.born_us[shard], node.server_clocks[shard])
        with self.resend_buffer.lost(shard, node.shards[shard].epoch, since_s) as plans:
            for plan in plans:
                await self._deliver(plan)
                node.counters.invalidations_repeated += 1

    async def guard(self, plan: Plan, token: str, px_ms: int) -> Receipt:
        """Invalidate, and have L2 keep nothing of it for `px_ms`; `InvalidationFailed` when that is not sure."""
        self._node.counters.guards += 1
        budget = self._fetch.budget()
        try:
            await budget.spent_on(self.pending.make_way(plan.shard))
            change = await budget.spent_on(self._guarded(plan, token, px_ms))
        except L2Unavailable as error:
            self._node.counters.l2_errors += 1
            self._forget(plan)
            raise InvalidationFailed(f"the guard is not sure to stand: {error}") from error
        except BaseException:
            self._forget(plan)
            raise
        if not change.stored:
            raise InvalidationFailed(
                "the guard does not stand: too many keys and scopes are guarded already (max_invalidated_scopes, "
                "CACHEBUS_MAX_INVALIDATED_SCOPES), or one of these by a thousand guards, as by blocks that exceptions "
                "have left; they end by their time-outs"
            )
        return self._receipt(plan, change)

    async def unguard(self, plan: Plan, token: str, *, wait: bool = False) -> Receipt:
        """Take the guard away, which invalidates once more; what `invalidate` raises, or a pending receipt. The guard
        itself then ends by its time-out."""
        change: Change | None
        try:
            change = await self._guarded(plan, token, 0, probe=wait)
        except L2Unavailable as error:
            self._node.counters.l2_errors += 1
            change = await self._queued(plan, error)
        except BaseException:
            self._forget(plan)
            raise
        return await self._receipt_for(plan, change, wait=wait)

    async def _guarded(self, plan: Plan, token: str, px_ms: int, *, probe: bool = False) -> Change:
        called_s = self._clock()
        body, caller = plan.body(self._node.id, probe=probe), self._node.caller(plan.shard)
        change = await self._store.guard(plan.shard, caller, plan.keys, plan.scopes, token, px_ms, body)
        if change.stored:
            await self._happened(plan, change, body, called_s)
        return change

    async def set(
        self,
        key: Key,
        value: object,
        rules: Rules,
        plan: Plan,
        *,
        ttl_s: float | None,
        tags: Sequence[str],
        if_absent: bool = False,
        wait: bool = False,
    ) -> Receipt:
        """Store a value in L2 and in the own L1, and replace what others hold; `plan` has the key itself first."""
        if not self._enabled:
            return NOTHING_DONE
        budget = self._fetch.budget()
        await budget.spent_on(self.pending.make_way(key.shard))
        node = self._node
        reservation, sent_at_s = node.shards[key.shard].reserve(), self._clock()
        server_now_s = sent_at_s + node.server_clocks[key.shard].offset_s
        record, stored = pack(value, rules, server_now_s, ttl_s=ttl_s, tags=tags)
        body = plan.body(node.id, probe=wait)
        try:
            change = await budget.spent_on(
                self._store.write(
                    key,
                    node.caller(key.shard),
                    record,
                    keep_ms(record, rules),
                    body,
                    others=plan.keys[1:],
                    scopes=plan.scopes,
                    if_absent=if_absent,
                )
            )
        except L2Unavailable:
            node.counters.l2_errors += 1
            self._forget(plan)
            raise
        except BaseException:
            self._forget(plan)
            raise
        if if_absent and not change.stored:
            return self._receipt(plan, change)
        await self._happened(plan, change, body, sent_at_s)
        record.epoch, record.seq = change.epoch, change.seq
        record.expires_ms = change.expires_ms or record.expires_ms
        if rules.l1 and change.stored:
            self._fetch.admit(key, stored, record, reservation, sent_at_s, rules)
        return await self._receipt_for(plan, change, wait=wait)

    async def count(self, key: Key, amount: int, request_id: str, expires_in_s: float | None) -> int:
        """Add to a counter in L2 and give its value; `L2Unavailable`, `ValueError` where it would leave 64 bits."""
        expires_ms = 0 if expires_in_s in (None, math.inf) else max(1, int(expires_in_s * 1000))
        try:
            value = await self._store.counter(key, self._node.caller(key.shard), amount, request_id, expires_ms)
        except L2Unavailable:
            self._node.counters.l2_errors += 1
            raise
        if value is None:
            raise ValueError(f"a counter has 64 bits: adding {amount} would leave them, and nothing was added")
        return value

    async def _happened(self, plan: Plan, change: Change, body: bytes, called_s: float) -> None:
        """L2 has it: this node applies it, and may repeat it; then the bus, where the script did not publish."""
        self._apply(plan, change, body)
        self.resend_buffer.note(plan, change.epoch, called_s)
        if self._bus.in_store:
            return
        await self._bus.publish(plan.shard, change.head + body)

    def _apply(self, plan: Plan, change: Change, body: bytes) -> None:
        """Own events count before the call returns."""
        self._node.wrote(plan.shard, change, body, events.Part([key.l1 for key in plan.keys], plan.scopes))
        shard = self._node.shards[plan.shard]
        if shard.epoch != change.epoch or shard.applied < change.seq:
            self._nudge(plan.shard)

    def _forget(self, plan: Plan) -> None:
        """Whether it happened is not known: believe nothing that it would have replaced."""
        self._node.forget(plan.shard, plan.keys, plan.scopes)
        if plan.scopes:
            self._nudge(plan.shard)  # until a probe is answered, L2 has to judge all that lies in them

    async def _confirmed(self, plan: Plan, change: Change) -> Receipt:
        """The receipt, once every other node has applied the change, or can't serve what it replaced."""
        nodes = await self._confirmer.wait(plan.shard, change, lambda: self._node.caller(plan.shard))
        return self._receipt(plan, change, nodes)

    @staticmethod
    def _receipt(plan: Plan, change: Change, nodes: Confirmed = NOBODY_ASKED) -> Receipt:
        return Receipt(
            plan.shard,
            change.epoch.decode(),
            change.seq,
            stored=change.stored,
            targets=plan.targets,
            confirmed=nodes.confirmed,
            lapsed=nodes.lapsed,
        )
