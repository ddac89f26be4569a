"""Reading L2: by plain gets while the node may judge records itself, else by the script that judges them in L2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cachebus.base.budget import NESTED, Budget
from cachebus.base.clock import Clock
from cachebus.core.node import INF, Node
from cachebus.core.ports import Position, Store
from cachebus.core.shard import Reservation, Shard
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key
from cachebus.policy import PolicyTable, Rules
from cachebus.reading.resting import Superseded
from cachebus.resp import leads_elsewhere
from cachebus.values import CorruptValue
from cachebus.values import decode as decode_value
from cachebus.wire import record as records
from cachebus.wire.packing import copier, unpack
from cachebus.wire.record import HEAD, MAGIC, Record, is_of

LARGE_BYTES = 16_384
"""To decode a record of more costs far more than to see whether another caller has just done so."""

MISSING: object = type("Missing", (), {"__repr__": lambda self: "MISSING", "__slots__": ()})()
"""Stands for "nothing there" where None may be a value."""


VOID: object = object()
"""Stands for "ask L2 itself": what this node knew has changed meanwhile."""

NOT_FOUND: object = object()
"""Stands for "the source has nothing": what a `get` takes for absent, unlike a None that was stored."""

Before = tuple[Reservation, float]
Answer = tuple[object, bytes | None]
"""A value, NOT_FOUND or MISSING, and the record that it was read from."""


class Seen(NamedTuple):
    """What L2 has under a key: its value, NOT_FOUND or MISSING, the record's version, whether it is past its soft
    expiry, and what makes a copy of the value for each caller."""

    value: object
    version: bytes = b""
    soft: bool = False
    copy: Callable[[], object] | None = None


def needs_script(error: L2Unavailable) -> bool:
    """Whether a plain get failed for what lies under the key (others wrote a list there), or for a Cluster's moving it:
    the script reads the one as nothing, and follows the other."""
    return str(error).startswith("WRONGTYPE") or leads_elsewhere(error)


class Fetcher:
    """L2 as a reader sees it: values that may be believed, and that enter L1 where they may."""

    def __init__(
        self,
        node: Node,
        store: Store,
        policies: PolicyTable,
        clock: Clock,
        nudge: Callable[[int], None],
        *,
        l2_timeout_s: float = INF,
    ) -> None:
        self.node = node
        self.store = store
        self.policies = policies
        self.clock = clock
        self.nudge = nudge
        self.superseded = Superseded()
        self._just: dict[int, tuple[bytes, object]] = {}
        """By the identity of what a server has sent in this tick: that, and the value."""
        self._l2_timeout_s = l2_timeout_s
        self._shards = node.shards
        self._noted: list[tuple[object, Before]] = [
            (None, (shard.reserve(), shard.fresh_as_of_s)) for shard in node.shards
        ]

    def budget(self, spent_s: float = 0.0) -> Budget:
        """What a call may wait for L2, if it has waited for so long."""
        return Budget(self.clock, self._l2_timeout_s, spent_s)

    async def one(self, key: Key, after: Position | None, *, admit: bool = True) -> object:
        """The key's value in L2, NOT_FOUND where it says so, or MISSING; `L2Unavailable`."""
        return (await self.many([key], after, admit=admit))[0]

    async def found(self, key: Key, after: Position | None, *, admit: bool = True) -> Seen:
        """What `one` gives, and what a load must know of the record."""
        ((value, data),) = await self.answers([key], after, admit=admit)
        if value is MISSING or data is None:
            return Seen(value)
        record = records.parse(data)  # its check was looked at when the value was taken
        return Seen(value, record.version, self.grown_soft(key.shard, record), copier(record, value, self._rules(key)))

    def soft_of(self, key: Key, value: object, data: bytes | None) -> bytes:
        """The version of what was answered, where that is past its soft expiry; else b""."""
        if value is MISSING or data is None:
            return b""
        record = records.parse(data)
        return record.version if self.grown_soft(key.shard, record) else b""

    async def many(self, keys: Sequence[Key], after: Position | None, *, admit: bool = True) -> list[object]:
        """What `one` gives, for keys of one shard, in one round trip."""
        return [value for value, _ in await self.answers(keys, after, admit=admit)]

    async def validated(self, keys: Sequence[Key], after: Position | None, *, admit: bool = True) -> list[object]:
        """What `many` gives, judged by L2 itself: always right, whatever this node has missed."""
        return [value for value, _ in await self._validated(keys, admit)]

    async def answers(self, keys: Sequence[Key], after: Position | None, *, admit: bool = True) -> list[Answer]:
        """What `many` gives, each with the record that it was made from."""
        if not keys:
            return []
        if self.node.blocked is not None:
            asked = [key for key in keys if not self.node.blocked.covers(key)]
            if len(asked) < len(keys):
                answers = dict(
                    zip([key.l1 for key in asked], await self.answers(asked, after, admit=admit), strict=True)
                )
                return [answers.get(key.l1, (MISSING, None)) for key in keys]
        if not self.may_judge(self._shards[keys[0].shard], after):
            return await self._validated(keys, admit)
        before, began_s = self.before(keys[0]), self.clock()
        replies = [self.store.get(key) for key in keys]
        try:
            data = [await reply for reply in replies]
        except L2Unavailable as error:
            if not needs_script(error):
                raise
            return await self._in_time_left(began_s, keys, admit)
        found = [MISSING if d is None else self.judged(k, d, before, admit) for k, d in zip(keys, data, strict=True)]
        if any(value is VOID for value in found):  # not `in`: an array compares element by element
            return await self._in_time_left(began_s, keys, admit)
        return list(zip(found, data, strict=True))

    async def _in_time_left(self, began_s: float, keys: Sequence[Key], admit: bool) -> list[Answer]:
        budget = Budget(self.clock, self._l2_timeout_s, self.clock() - began_s, NESTED)
        return await budget.spent_on(self._validated(keys, admit))

    async def _validated(self, keys: Sequence[Key], admit: bool) -> list[Answer]:
        index = keys[0].shard
        shard = self._shards[index]
        reservation, started_s = shard.reserve(), self.clock()
        reply = await self.store.read(index, self.node.caller(index), keys)
        self.node.counters.l2_latency.observe(self.clock() - started_s)
        self.notice(index, reply.epoch)
        found: list[Answer] = []
        for key, data in zip(keys, reply.records, strict=True):
            record = None if data is None else self.decoded(key, data)
            believed = record is not None and not self.expired(index, record)
            value = MISSING
            if record is not None and believed:
                value = self.taken(key, record, reservation if admit else None, started_s)
            found.append((value, data))
        return found

    def may_judge(self, shard: Shard, after: Position | None) -> bool:
        """Whether this node has heard enough of late, and its connection known, to judge what a plain get brings."""
        return (
            self.store.checked[shard.index]
            and self.clock() < shard.valid_until
            and (after is None or shard.honours(after.epoch, after.seq))
        )

    def before(self, key: Key) -> Before:
        """What must be noted before a plain get: a reservation, and since when its answer may be called fresh."""
        shard = self._shards[key.shard]
        # Between two events every read would note the same: made once, as a reservation costs more than a comparison.
        state = shard.epoch, shard.drop_count, shard.applied, shard.valid_until
        noted_at, before = self._noted[key.shard]
        if noted_at != state:
            before = shard.reserve(), shard.fresh_as_of_s
            self._noted[key.shard] = state, before
        return before

    def judged(self, key: Key, data: bytes, before: Before, admit: bool) -> object:
        """The value of a record that a plain get brought: of this epoch, unexpired, and not overtaken. MISSING where
        it is none. VOID where L2 must be asked, since the node is in another epoch by now, or may lack an invalidation.

        Reads the head where it lies: a `Record` is made only for what enters L1 or is special."""
        shard = self._shards[key.shard]
        reservation, read_s = before
        if shard.epoch != reservation.epoch:
            return VOID
        if len(data) < HEAD.size:
            return self._corrupt(key)
        head = HEAD.unpack_from(data)
        magic, kind, epoch, seq, expires_ms, _, _, _, _, tags, more = head
        if magic != MAGIC:
            return self._corrupt(key)
        server_ms = (self.clock() + self.node.server_clocks[key.shard].offset_s) * 1000.0
        if epoch != shard.epoch or 0 < expires_ms <= server_ms:
            return MISSING
        if shard.doubts.noted and shard.doubts.open(key.scopes, shard.fresh_as_of_s):
            return VOID
        if (shard.invalidated or shard.low) and shard.hides(seq, key.family.bucket, key.scopes):
            self.node.counters.lost_to_watermarks += shard.below(seq, key.family.bucket)
            return MISSING
        if id(data) not in self._just and not is_of(key.crc, data, head):
            return self._corrupt(key)
        rules = self.policies.rules(key.family.data_type)
        try:
            if tags or more or kind > 0xFF or (admit and rules.l1):
                record = records.made(data, head)
                if tags and shard.hides(seq, key.family.bucket, record.tags):
                    return MISSING
                if tags and shard.doubts.noted and shard.doubts.open(record.tags, shard.fresh_as_of_s):
                    return VOID
                return self.taken(key, record, reservation if admit else None, read_s, data)
            known = self._just.get(id(data))
            return known[1] if known else self._keep(data, decode_value(kind, data[HEAD.size :], rules.model), rules)
        except (CorruptValue, records.CorruptRecord):
            return self._corrupt(key)

    def _keep(self, data: bytes, value: object, rules: Rules) -> object:
        """The value, kept for others who have asked with this one: what a server sent once is decoded once."""
        if len(data) > LARGE_BYTES and not rules.copy:
            if not self._just:
                asyncio.get_running_loop().call_soon(self._just.clear)
            self._just[id(data)] = data, value
        return value

    def _corrupt(self, key: Key) -> object:
        self.node.counters.records_corrupt += 1
        self.node.counters.of(key.family.data_type).serialization_errors += 1
        return MISSING

    def decoded(self, key: Key, data: bytes) -> Record | None:
        """The key's record in these bytes; one that is damaged, or another key's, is a counted miss."""
        try:
            return records.decode(data, key.l2)
        except records.CorruptRecord:
            self.node.counters.records_corrupt += 1
            return None

    def expired(self, shard: int, record: Record) -> bool:
        """Whether the record's hard expiry is over, by the L2 server's clock."""
        return 0 < record.expires_ms <= (self.clock() + self.node.server_clocks[shard].offset_s) * 1000

    def grown_soft(self, shard: int, record: Record) -> bool:
        """Whether the record's soft expiry is over: it may be served, and is to be refreshed."""
        return 0 < record.soft_ms <= (self.clock() + self.node.server_clocks[shard].offset_s) * 1000

    def _rules(self, key: Key) -> Rules:
        return self.policies.rules(key.family.data_type)

    def taken(
        self, key: Key, record: Record, reservation: Reservation | None, read_started_s: float, data: bytes = b""
    ) -> object:
        """The value of a record that may be believed; with a reservation it enters L1 where it may. `data`: what it was
        read from."""
        shard = self._shards[key.shard]
        if (
            record.epoch == shard.epoch
            and (shard.invalidated or shard.low)
            and shard.hides(record.seq, key.family.bucket, (*key.scopes, *record.tags))
        ):
            return MISSING  # L2 found it valid, but this node has heard since then that it is not
        if self.node.blocked is not None and self.node.blocked.covers(key, record.tags):
            return MISSING  # this node knows better, and L2 will
        rules = self.policies.rules(key.family.data_type)
        try:
            known = self._just.get(id(data))
            value = known[1] if known else self._keep(data, unpack(record, rules), rules)
        except CorruptValue:
            return self._corrupt(key)
        if record.not_found:
            if reservation is not None and rules.l1:
                self.admit(key, value, record, reservation, read_started_s, rules)
            return NOT_FOUND
        if reservation is not None and rules.l1:
            self.admit(key, value, record, reservation, read_started_s, rules)
            copy = copier(record, value, rules)
            if copy is not None:
                return copy()  # what is in memory is nobody's to change, this caller's neither
        return value

    def admit(
        self,
        key: Key,
        value: object,
        record: Record,
        reservation: Reservation,
        read_started_s: float,
        rules: Rules,
        *,
        fenced: bool = True,
    ) -> bool:
        """Let a value into L1 by the rules of its type, if nothing replaced it meanwhile."""
        return self.node.admit(
            key,
            value,
            record,
            reservation,
            read_started_s,
            l1_ttl_s=INF if rules.l1_ttl_s is None else rules.l1_ttl_s,
            keep_s=rules.fail_safe_s or 0.0,
            decode=copier(record, value, rules) if rules.copy else None,
            fenced=fenced,
        )

    def notice(self, index: int, epoch: bytes) -> None:
        """A reply of another epoch: only a probe moves the node there, so have one sent soon."""
        if epoch != self._shards[index].epoch:
            self.nudge(index)
