"""The verbs of a write: what each asks L2 for, and what becomes of it where L2 does not answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from cachebus.base.pieces import PIECE_MAX, in_pieces
from cachebus.core.membership import Confirmed
from cachebus.core.ports import Change
from cachebus.core.requests import WriteRequest
from cachebus.errors import InvalidationFailed, L2Unavailable
from cachebus.keys.key import Key
from cachebus.keys.plan import Plan
from cachebus.policy import Rules
from cachebus.reading.fetch import Fetcher
from cachebus.reading.judge import AsOf
from cachebus.receipt import Receipt, disabled_receipt, pending_receipt
from cachebus.wire.packing import Given, keep_ms, pack
from cachebus.wire.record import Record
from cachebus.writing.confirm import Confirmer
from cachebus.writing.delivery import Delivery
from cachebus.writing.pending import Pending, PendingInvalidation

NOBODY_ASKED = Confirmed()
Packed = tuple[Record, object]
"""A record, and the value as every node decodes it."""


class SetRequest(NamedTuple):
    """A value to be stored."""

    key: Key
    value: object
    rules: Rules
    plan: Plan
    """What is replaced by it: the key itself first."""
    ttl_s: float | None = None
    """Seconds; None is the type's."""
    tags: Sequence[str] = ()
    """The tags' scopes."""
    if_absent: bool = False
    """Store only where there is no value, and else do nothing."""
    over: bytes = b""
    """Store only in the place of a value of this version, and else do nothing; b"": whatever is there."""
    wait: bool = False
    """Return when no node can serve what was replaced."""


class Writer:
    """Writes and invalidations of one cache.

    Where L2 does not answer, nobody knows whether a write happened, so this node believes nothing that it would have
    replaced. A `set` raises then. An invalidation waits for L2 in a queue, or raises where it may not.
    """

    def __init__(
        self, fetcher: Fetcher, delivery: Delivery, pending: Pending, confirmer: Confirmer, *, enabled: bool
    ) -> None:
        self._fetch = fetcher
        self._node = fetcher.node
        self._store = fetcher.store
        self._delivery = delivery
        self._pending = pending
        self._confirmer = confirmer
        self._enabled = enabled
        self._listeners: list[Callable[[Plan], None]] = []

    @contextmanager
    def recorded_by(self, listener: Callable[[Plan], None]) -> Iterator[None]:
        """Give this each invalidation that is asked for, until the block ends: for tests."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def record(self, plan: Plan) -> None:
        """An invalidation is asked for, whatever becomes of it."""
        for listener in self._listeners:
            listener(plan)

    # -- the verbs ------------------------------------------------------------------------------------------------

    async def set(self, request: SetRequest) -> Receipt:
        """Store a value in L2 and in the own L1, and replace what others hold; `L2Unavailable`, and what `pack` raises.

        It goes behind the invalidations that wait for L2: sent first, it would be removed by an older one sent later.
        """
        if not self._enabled:
            return disabled_receipt(request.key.shard)
        change = await self._stored(request, self._packed(request))
        if (request.if_absent or request.over) and not change.done:
            return receipt_of(request.plan, change)
        return await self._receipt_for(request.plan, change, wait=request.wait)

    async def set_many(self, requests: Sequence[SetRequest], *, wait: bool = False) -> Receipt:
        """Store several values of one shard, as `set` does each. What can't be encoded is told before anything is
        written. Where any of those fails that are sent at once, raises the first error once all of these have been
        tried: what comes behind is not written, as an L2 that is away would be waited for each time."""
        shard = requests[0].key.shard
        if not self._enabled:
            return disabled_receipt(shard)
        packed = []
        for i, request in enumerate(requests):
            packed.append((request, self._packed(request)))
            if i % PIECE_MAX == PIECE_MAX - 1:
                await asyncio.sleep(0)
        if wait:  # nodes are asked once, by the last event, for all before it
            packed[-1] = packed[-1][0]._replace(wait=True), packed[-1][1]
        changes: list[Change] = []
        for some in in_pieces(packed, lambda one: len(one[1][0].payload)):
            answers = await asyncio.gather(*(self._stored(*one) for one in some), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
                changes.append(answer)
        # A new epoch voids what was stored in the one before: the last stands for all that there is.
        last = max((c for c in changes if c.epoch == changes[-1].epoch), key=lambda change: change.seq)
        plan = Plan(shard)
        for request in requests:
            for data_type, count in request.plan.targets.items():
                plan.targets[data_type] = plan.targets.get(data_type, 0) + count
        return await self._receipt_for(plan, last._replace(done=all(c.done for c in changes)), wait=wait)

    def _packed(self, request: SetRequest) -> Packed:
        given = Given(request.ttl_s, request.tags)
        return pack(request.value, request.rules, self._node.server_now_s(request.key.shard), given)

    async def _stored(self, request: SetRequest, packed: Packed) -> Change:
        """Store one value, and tell of it."""
        key, plan, node = request.key, request.plan, self._node
        record, kept = packed
        budget = self._fetch.budget()
        await budget.spent_on(self._pending.make_way(key.shard))
        reservation, sent_at_s = node.shards[key.shard].reserve(), node.clock()
        body = plan.body(node.id, probe=request.wait)
        kept_ms = keep_ms(record, request.rules)
        writing = WriteRequest(record, kept_ms, body, plan.keys[1:], plan.scopes, request.if_absent, request.over)
        stored = self._store.write(key, node.caller(key.shard), writing)
        with self._delivery.refusals.of("values", key.family.data_type):
            change = await self._or_doubt(plan, budget.spent_on(stored))
        if (request.if_absent or request.over) and not change.done:
            return change
        await self._delivery.spread(plan, change, body, sent_at_s)
        if request.rules.l1 and change.done:
            record.set_position(change.epoch, change.seq, expires_ms=change.expires_ms)
            self._fetch.judge.admit(key, kept, record, AsOf(reservation, sent_at_s))
        return change

    async def invalidate(self, plan: Plan, *, wait: bool = False) -> Receipt:
        """Replace all that the plan addresses, everywhere; `InvalidationFailed` when that is not sure. `wait`: return
        when no node can serve what was replaced."""
        self.record(plan)
        if not self._enabled:
            return disabled_receipt(plan.shard)
        self._node.counters.invalidations += 1
        if self._pending.holds_up(plan.shard):
            change = await self._pending.delivered(self._enqueue(plan))
        else:
            change = await self._or_enqueue(plan, self._delivery.invalidate(plan, probe=wait))
        return await self._receipt_for(plan, change, wait=wait)

    async def guard(self, plan: Plan, token: str, px_ms: int) -> Receipt:
        """Invalidate, and have L2 keep nothing of it for `px_ms`; `InvalidationFailed` when that is not sure."""
        self._node.counters.guards += 1
        try:
            change = await self._or_doubt(plan, self._guard_in_turn(plan, token, px_ms))
        except L2Unavailable as error:
            raise InvalidationFailed(f"the guard is not sure to stand: {error}") from error
        if not change.done:
            raise InvalidationFailed(
                "the guard does not stand: too many keys and scopes are guarded already (max_invalidated_scopes, "
                "CACHEBUS_MAX_INVALIDATED_SCOPES), or one of these by a thousand guards, as by blocks that exceptions "
                "have left; they end by their time-outs"
            )
        return receipt_of(plan, change)

    async def unguard(self, plan: Plan, token: str, *, wait: bool = False) -> Receipt:
        """Take the guard away, which invalidates once more. `InvalidationFailed`, or a pending receipt, where L2 does
        not answer: the guard itself then ends by its time-out."""
        change = await self._or_enqueue(plan, self._delivery.guard(plan, token, 0, probe=wait))
        return await self._receipt_for(plan, change, wait=wait)

    async def count(self, key: Key, amount: int, request_id: str, expires_in_s: float | None) -> int:
        """Add to a counter in L2 and give its value; `L2Unavailable`, `ValueError` where it would leave 64 bits."""
        expires_ms = 0 if expires_in_s in (None, math.inf) else max(1, int(expires_in_s * 1000))
        try:
            with self._delivery.refusals.of("counters", key.family.data_type):
                value = await self._store.counter(key, self._node.caller(key.shard), amount, request_id, expires_ms)
        except L2Unavailable:
            self._node.counters.l2_errors += 1
            raise
        if value is None:
            raise ValueError(f"a counter has 64 bits: adding {amount} would leave them, and nothing was added")
        return value

    # -- what they have in common ---------------------------------------------------------------------------------

    async def _guard_in_turn(self, plan: Plan, token: str, px_ms: int) -> Change:
        budget = self._fetch.budget()
        await budget.spent_on(self._pending.make_way(plan.shard))
        return await budget.spent_on(self._delivery.guard(plan, token, px_ms))

    async def _or_doubt(self, plan: Plan, step: Awaitable[Change]) -> Change:
        """What L2 answers. Where it does not, or the caller is cancelled, the change may have happened."""
        try:
            return await step
        except BaseException as error:
            if isinstance(error, L2Unavailable):
                self._node.counters.l2_errors += 1
            self._delivery.doubt(plan)
            raise

    async def _or_enqueue(self, plan: Plan, step: Awaitable[Change]) -> Change | None:
        """What L2 answers; None where it does not, and the plan waits for it from now on. `InvalidationFailed`."""
        try:
            return await step
        except L2Unavailable as error:
            self._node.counters.l2_errors += 1
            self._enqueue(plan, error)
            return None
        except BaseException:
            self._delivery.doubt(plan)  # cancelled: it may have happened
            raise

    def _enqueue(self, plan: Plan, why: L2Unavailable | None = None) -> PendingInvalidation:
        """Have the plan wait for L2, behind those that do; `InvalidationFailed` when it may not, or has no room."""
        waiting = self._pending.add(plan)
        self._delivery.doubt(plan)
        if waiting is None:
            self._node.counters.invalidations_failed += 1
            reason = why or "the queue of pending invalidations is full"
            raise InvalidationFailed(f"the invalidation is not sure to have happened: {reason}") from why
        return waiting

    async def _receipt_for(self, plan: Plan, change: Change | None, *, wait: bool) -> Receipt:
        """The receipt of a change, or of one that waits for L2 (None). `wait`: once every other node has applied the
        change, or can't serve what it replaced."""
        if change is None:
            return pending_receipt(plan.shard, plan.targets)
        if not wait:
            return receipt_of(plan, change)
        nodes = await self._confirmer.wait(plan.shard, change, lambda: self._node.caller(plan.shard))
        return receipt_of(plan, change, nodes)


def receipt_of(plan: Plan, change: Change, nodes: Confirmed = NOBODY_ASKED) -> Receipt:
    """The receipt of a change that L2 has."""
    return Receipt(
        plan.shard,
        change.epoch.decode(),
        change.seq,
        stored=change.done,
        targets=plan.targets,
        confirmed=nodes.confirmed,
        lapsed=nodes.lapsed,
    )
