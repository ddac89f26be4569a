"""What L2 has under a key, and whether it may be believed.

1. `may_judge`: while the node's marks are recent enough it asks by a plain get, the cheapest question there is. It
   notes before what it knows by then (`as_of`), and judges the answer itself (`judged`).
2. Otherwise, and where what it knew has changed meanwhile, it asks the script that judges records in L2 (`validated`).
3. What may be believed is decoded (`decode_and_admit`), and enters L1 where its type and its reservation allow
   (`admit`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cachebus.base.budget import NESTED, Budget
from cachebus.core.admission import INF, Offer
from cachebus.core.answers import Reservation
from cachebus.core.node import Node
from cachebus.core.ports import Position, Store
from cachebus.core.shard import Shard
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key
from cachebus.policy import PolicyTable, Rules
from cachebus.reading.resting import Superseded
from cachebus.resp import is_of_another_type, leads_elsewhere
from cachebus.values import CorruptValue
from cachebus.values import decode as decode_value
from cachebus.wire import record as records
from cachebus.wire.packing import copier, unpack
from cachebus.wire.record import HEAD, MAGIC, Record, is_of

LARGE_BYTES = 16_384
"""To decode a record of more costs far more than to see whether another caller has just done so."""

MISSING: object = type("Missing", (), {"__repr__": lambda self: "MISSING", "__slots__": ()})()
"""Stands for "nothing there" where None may be a value."""


ASK_L2: object = object()
"""Stands for "ask L2 itself": what this node knew has changed meanwhile."""

NOT_FOUND: object = object()
"""Stands for "the source has nothing": what a `get` takes for absent, unlike a None that was stored."""


class AsOf(NamedTuple):
    """As of when what was read, loaded or written is: a reservation taken before, and `at_s` on this node's clock. What
    is invalidated from then on keeps it out of L1."""

    reservation: Reservation
    at_s: float


ValueAndRecord = tuple[object, bytes | None]
"""A value, NOT_FOUND or MISSING, and the record that it was read from."""


class Seen(NamedTuple):
    """What L2 has under a key: its value, NOT_FOUND or MISSING, the record's version, whether it is past its soft
    expiry, and what makes a copy of the value for each caller."""

    value: object
    version: bytes = b""
    soft: bool = False
    copy: Callable[[], object] | None = None


def needs_script(error: L2Unavailable) -> bool:
    """Whether the script may answer where a plain get failed.

    1. Others wrote a list under the key: the script reads that as nothing.
    2. A Cluster has moved the key: the script is followed there.
    """
    return is_of_another_type(error) or leads_elsewhere(error)


class Fetcher:
    """L2 as a reader sees it: values that may be believed, and that enter L1 where they may."""

    def __init__(
        self,
        node: Node,
        store: Store,
        policies: PolicyTable,
        nudge: Callable[[int], None],
        *,
        l2_timeout_s: float = INF,
    ) -> None:
        """`nudge` has a shard probed soon."""
        self.node = node
        self.store = store
        self.policies = policies
        self.clock = node.clock
        self.nudge = nudge
        self.superseded = Superseded()
        self._just: dict[int, tuple[bytes, object]] = {}
        """By the identity of what a server has sent in this tick: that, and the value."""
        self._l2_timeout_s = l2_timeout_s
        self._shards = node.shards
        self._noted: list[tuple[object, AsOf]] = [
            (None, AsOf(shard.reserve(), shard.fresh_as_of_s)) for shard in node.shards
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

    async def validated(self, keys: Sequence[Key], *, admit: bool = True) -> list[object]:
        """What `many` gives, judged by L2 itself: always right, whatever this node has missed."""
        return [value for value, _ in await self._validated(keys, admit)]

    async def answers(self, keys: Sequence[Key], after: Position | None, *, admit: bool = True) -> list[ValueAndRecord]:
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
        as_of, began_s = self.as_of(keys[0]), self.clock()
        replies = [self.store.get(key) for key in keys]
        try:
            data = [await reply for reply in replies]
        except L2Unavailable as error:
            if not needs_script(error):
                raise
            return await self._in_time_left(began_s, keys, admit)
        found = [MISSING if d is None else self.judged(k, d, as_of, admit) for k, d in zip(keys, data, strict=True)]
        if any(value is ASK_L2 for value in found):  # not `in`: an array compares element by element
            return await self._in_time_left(began_s, keys, admit)
        return list(zip(found, data, strict=True))

    async def _in_time_left(self, began_s: float, keys: Sequence[Key], admit: bool) -> list[ValueAndRecord]:
        budget = Budget(self.clock, self._l2_timeout_s, self.clock() - began_s, NESTED)
        return await budget.spent_on(self._validated(keys, admit))

    async def _validated(self, keys: Sequence[Key], admit: bool) -> list[ValueAndRecord]:
        index = keys[0].shard
        shard = self._shards[index]
        as_of = AsOf(shard.reserve(), self.clock())
        reply = await self.store.read(index, self.node.caller(index), keys)
        self.node.counters.l2_latency.observe(self.clock() - as_of.at_s)
        self.notice(index, reply.epoch)
        found: list[ValueAndRecord] = []
        for key, data in zip(keys, reply.records, strict=True):
            record = None if data is None else self.decoded(key, data)
            believed = record is not None and not self.expired(index, record)
            value = MISSING
            if record is not None and believed:
                value = self.decode_and_admit(key, record, as_of if admit else None)
            found.append((value, data))
        return found

    def may_judge(self, shard: Shard, after: Position | None) -> bool:
        """Whether this node has heard enough of late, and its connection known, to judge what a plain get brings."""
        return (
            self.store.checked[shard.index]
            and self.clock() < shard.valid_until
            and (after is None or shard.honours(after.epoch, after.seq))
        )

    def as_of(self, key: Key) -> AsOf:
        """As of when a plain get's answer will be; to be called before it is asked."""
        shard = self._shards[key.shard]
        # Between two events every read would note the same: made once, as a reservation costs more than a comparison.
        state = shard.epoch, shard.drop_count, shard.applied, shard.valid_until
        noted_at, as_of = self._noted[key.shard]
        if noted_at != state:
            as_of = AsOf(shard.reserve(), shard.fresh_as_of_s)
            self._noted[key.shard] = state, as_of
        return as_of

    def judged(self, key: Key, data: bytes, as_of: AsOf, admit: bool) -> object:
        """What a record stands for that a plain get brought.

        1. Its value, where it is of this epoch, unexpired, and replaced by no mark.
        2. MISSING where it is not.
        3. ASK_L2 where L2 must be asked: the node entered another epoch meanwhile, or may lack a mark.

        It reads the head where it lies: a `Record` is made only for what enters L1, or is special.
        """
        shard = self._shards[key.shard]
        if shard.epoch != as_of.reservation.epoch:
            return ASK_L2
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
            return ASK_L2
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
                    return ASK_L2
                return self.decode_and_admit(key, record, as_of if admit else None, data)
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

    def decode_and_admit(self, key: Key, record: Record, admits: AsOf | None, data: bytes = b"") -> object:
        """The value of a record that may be believed. `admits`: as of when it was read, where it may enter L1. `data`:
        the bytes it was read from."""
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
        if admits is not None and rules.l1:
            self.admit(key, value, record, admits)
            copy = copier(record, value, rules)
            if copy is not None:
                return copy()  # what is in memory is nobody's to change, this caller's neither
        return NOT_FOUND if record.not_found else value

    def admit(self, key: Key, value: object, record: Record, as_of: AsOf, *, fenced: bool = True) -> bool:
        """Let a value into L1 by the rules of its type, if nothing replaced it meanwhile; whether it is there.

        `fenced=False`: L2 did not confirm it.
        """
        rules = self._rules(key)
        l1_ttl_s = INF if rules.l1_ttl_s is None else rules.l1_ttl_s
        decode = copier(record, value, rules) if rules.copy else None
        fallback_s = rules.fail_safe_s or 0.0
        return self.node.admit(
            Offer(key, value, record, as_of.reservation, as_of.at_s, l1_ttl_s, fallback_s, decode, fenced)
        )

    def notice(self, index: int, epoch: bytes) -> None:
        """A reply of another epoch: only a probe moves the node there, so have one sent soon."""
        if epoch != self._shards[index].epoch:
            self.nudge(index)
