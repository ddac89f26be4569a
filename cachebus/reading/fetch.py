"""What L2 has under keys: `read_one`, which every read of one key goes through, and `read`, for several.

1. `may_judge`: while what the node knows of invalidations is recent enough it asks by a plain get, the cheapest
   question there is, and judges the answer itself (`judge`).
2. Otherwise, and where what it knew has changed meanwhile, it asks the script that judges records in L2
   (`_read_by_script`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cachebus.base.budget import NESTED, Budget
from cachebus.core.answers import INF
from cachebus.core.node import Node
from cachebus.core.ports import Position, Store
from cachebus.core.shard import Shard
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key
from cachebus.policy import PolicyTable
from cachebus.reading.cooldown import Superseded
from cachebus.reading.judge import ASK_L2, LARGE_BYTES, MISSING, AsOf, Judge
from cachebus.reading.refusals import RefusalLog
from cachebus.resp import is_of_another_type, leads_elsewhere
from cachebus.wire import record as records
from cachebus.wire.record import Record

Seen = tuple[object, bytes | None]
"""What L2 has under a key, as far as it may be believed: the value, NOT_FOUND or MISSING, and the record's bytes. No
class, as every hit in L2 makes one."""
NOTHING_SEEN: Seen = MISSING, None


def record_of(seen: Seen) -> Record | None:
    """The record that a value was read from: its check was looked at when the value was taken."""
    value, data = seen
    return None if value is MISSING or data is None else records.parse(data)


def needs_script(error: L2Unavailable) -> bool:
    """Whether the script may answer where a plain get failed.

    1. Others wrote a list under the key: the script reads that as nothing.
    2. A Cluster has moved the key: the script is followed there.
    """
    return is_of_another_type(error) or leads_elsewhere(error)


class Fetcher:
    """L2 as a reader sees it: asks it, and has a `Judge` say what of its answers may be believed."""

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
        self.refusals = RefusalLog(node.clock, node.counters)
        self.node = node
        self.store = store
        self.judge = Judge(node, policies)
        self.clock = node.clock
        self.nudge = nudge
        self.superseded = Superseded()
        self.l2_timeout_s = l2_timeout_s
        """In seconds."""
        self._shards = node.shards

    def budget(self, spent_s: float = 0.0) -> Budget:
        """What a call may wait for L2, if it has waited for so long."""
        return Budget(self.clock, self.l2_timeout_s, spent_s)

    async def read_one(
        self,
        key: Key,
        after: Position | None,
        *,
        admit: bool = True,
        decoded_by_others: Callable[[Key], Seen | None] | None = None,
    ) -> Seen:
        """What L2 has under the key; `L2Unavailable`. `admit`: it may enter L1. `decoded_by_others`: what whoever asked
        together with this one has just made of the key's record, which is looked at where the record is large, and may
        enter L1."""
        if self.node.is_blocked(key):
            return NOTHING_SEEN
        if not self.may_judge(self._shards[key.shard], after):
            return (await self._read_by_script([key], admit))[0]
        as_of, began_s = self.judge.as_of(key), self.clock()
        try:
            data = await self.store.get(key)
        except L2Unavailable as error:
            if not needs_script(error):
                raise
            return (await self._read_by_script_in_time_left([key], admit, began_s))[0]
        if data is None:
            return NOTHING_SEEN
        if len(data) > LARGE_BYTES and admit and after is None and decoded_by_others is not None:
            decoded = decoded_by_others(key)
            if decoded is not None:
                return decoded
        value = self.judge.judged(key, data, as_of, admit)
        if value is ASK_L2:
            return (await self._read_by_script_in_time_left([key], admit, began_s))[0]
        return value, data

    async def read(self, keys: Sequence[Key], after: Position | None, *, admit: bool = True) -> list[Seen]:
        """What `read_one` gives, for each of these keys of one shard, in one round trip."""
        asked = keys if self.node.blocked is None else [key for key in keys if not self.node.is_blocked(key)]
        seen = await self._read(asked, after, admit)
        if len(asked) == len(keys):
            return seen
        by_name = dict(zip([key.l1 for key in asked], seen, strict=True))
        return [by_name.get(key.l1, NOTHING_SEEN) for key in keys]

    async def _read(self, keys: Sequence[Key], after: Position | None, admit: bool) -> list[Seen]:
        if not keys:
            return []
        if not self.may_judge(self._shards[keys[0].shard], after):
            return await self._read_by_script(keys, admit)
        as_of, began_s = self.judge.as_of(keys[0]), self.clock()
        replies = [self.store.get(key) for key in keys]
        try:
            data = [await reply for reply in replies]
        except L2Unavailable as error:
            if not needs_script(error):
                raise
            return await self._read_by_script_in_time_left(keys, admit, began_s)
        judged = self.judge.judged
        found = [MISSING if d is None else judged(k, d, as_of, admit) for k, d in zip(keys, data, strict=True)]
        if any(value is ASK_L2 for value in found):  # not `in`: an array compares element by element
            return await self._read_by_script_in_time_left(keys, admit, began_s)
        return list(zip(found, data, strict=True))

    async def _read_by_script_in_time_left(self, keys: Sequence[Key], admit: bool, began_s: float) -> list[Seen]:
        budget = Budget(self.clock, self.l2_timeout_s, self.clock() - began_s, NESTED)
        return await budget.spent_on(self._read_by_script(keys, admit))

    async def _read_by_script(self, keys: Sequence[Key], admit: bool) -> list[Seen]:
        """What is judged by L2 itself: always right, whatever this node has missed."""
        index = keys[0].shard
        shard = self._shards[index]
        as_of = AsOf(shard.reserve(), self.clock())
        reply = await self.store.read(index, self.node.caller(index), keys)
        self.node.counters.l2_latency.observe(self.clock() - as_of.at_s)
        self.notice(index, reply.epoch)
        found: list[Seen] = []
        for key, data in zip(keys, reply.records, strict=True):
            record = None if data is None else self.judge.decoded(key, data)
            believed = record is not None and not self.judge.expired(index, record)
            value = MISSING
            if record is not None and believed:
                value = self.judge.decode_and_admit(key, record, as_of if admit else None)
            found.append((value, data))
        return found

    def may_judge(self, shard: Shard, after: Position | None) -> bool:
        """Whether this node has heard enough of late, and its connection known, to judge what a plain get brings."""
        return (
            self.store.checked[shard.index]
            and self.clock() < shard.valid_until_s
            and (after is None or shard.honours(after.epoch, after.seq))
        )

    def notice(self, index: int, epoch: bytes) -> None:
        """A reply of another epoch: only a probe moves the node there, so have one sent soon."""
        if epoch != self._shards[index].epoch:
            self.nudge(index)
