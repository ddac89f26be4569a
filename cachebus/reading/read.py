"""Reads that ask no source: what L1 may serve, else what L2 has.

The public verbs answer the commonest hit themselves. What they do not answer comes here:

1. `get`: L1 by its whole rule, else L2.
2. `get_many`: the same for many keys, in one round trip.
3. `search`: a key's own contexts and the wider ones, the most specific value first.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachebus.core.details import details
from cachebus.core.ports import Position
from cachebus.core.shard import Shard
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key
from cachebus.l1 import Entry
from cachebus.reading.fetch import ASK_L2, LARGE_BYTES, MISSING, NOT_FOUND, AsOf, Fetcher, needs_script
from cachebus.reading.request import Found


class Reader:
    """Reads that L1's fast path did not answer."""

    def __init__(self, fetcher: Fetcher, *, outage_is_miss: bool = False, enabled: bool = True) -> None:
        """`outage_is_miss`: a read that L2 does not answer finds nothing, rather than raise `L2Unavailable`. `enabled`:
        whether anything is cached."""
        self._fetch, self._node, self._clock = fetcher, fetcher.node, fetcher.clock
        self._outage_is_miss = outage_is_miss
        self._enabled = enabled

    # -- get ------------------------------------------------------------------------------------------------------

    async def get(self, key: Key, after: Position | None, use_memory: bool) -> object:
        """The value, NOT_FOUND where the source has nothing, or MISSING; `L2Unavailable` unless an outage is a miss."""
        counters, began_s = self._node.counters.of(key.family.data_type), self._clock()
        entry = self.remembered(key, after) if use_memory else None
        if entry is not None:
            counters.l1_hits += 1
            return handed_out(entry)
        try:
            if not self._enabled or (self._node.blocked is not None and self._node.blocked.covers(key)):
                value = MISSING
            elif after is None and self._fetch.may_judge(self._node.shards[key.shard], None):
                # What `Fetcher.one` does, without another coroutine around it: this is the path of every L2 hit.
                as_of = self._fetch.as_of(key)
                data = await self._fetch.store.get(key)
                if use_memory and data is not None and len(data) > LARGE_BYTES:
                    entry = self.remembered(key, None)  # whoever asked with this one has decoded it
                    if entry is not None:
                        counters.l2_hits += 1
                        return handed_out(entry)
                value = MISSING if data is None else self._fetch.judged(key, data, as_of, use_memory)
                if value is ASK_L2:
                    value = await self._judged_in_l2(key, use_memory, began_s)
            else:
                value = await self._fetch.one(key, after, admit=use_memory)
        except L2Unavailable as error:
            value = await self._once_more(key, use_memory, error, began_s)
        if value is MISSING:
            counters.misses += 1
        else:
            counters.l2_hits += 1
        return value

    async def _judged_in_l2(self, key: Key, use_memory: bool, began_s: float) -> object:
        """What the script gives, in what time is left."""
        budget = self._fetch.budget(self._clock() - began_s)
        return (await budget.spent_on(self._fetch.validated([key], admit=use_memory)))[0]

    async def _once_more(self, key: Key, use_memory: bool, error: L2Unavailable, began_s: float) -> object:
        """What the script gives, where only that may answer; an outage is a miss here too, where it is one."""
        if needs_script(error):
            try:
                return await self._judged_in_l2(key, use_memory, began_s)
            except L2Unavailable as other:
                error = other
        if self._outage_is_a_miss():
            return MISSING
        raise error

    async def get_many(self, keys: Sequence[Key], after: Position | None) -> list[object]:
        """What `get` gives for each of these keys of one tenant; what L1 lacks comes in one round trip."""
        found: list[object] = [MISSING] * len(keys)
        lacking: list[int] = []
        for i, key in enumerate(keys):
            entry = self.remembered(key, after)
            if entry is None:
                lacking.append(i)
            else:
                found[i] = handed_out(entry)
                self._node.counters.of(key.family.data_type).l1_hits += 1
        if lacking and self._enabled:
            try:
                values = await self._fetch.many([keys[i] for i in lacking], after)
            except L2Unavailable:
                if not self._outage_is_a_miss():
                    raise
                values = [MISSING] * len(lacking)
            for i, value in zip(lacking, values, strict=True):
                found[i] = value
        for i in lacking:
            counters = self._node.counters.of(keys[i].family.data_type)
            if found[i] is MISSING:
                counters.misses += 1
            else:
                counters.l2_hits += 1
        return found

    async def search(self, key: Key, after: Position | None, use_memory: bool, *, loads_next: bool = False) -> Found:
        """The most specific hit from the key's own level up to the tenant's; what is missing is remembered as such.
        `loads_next`: who finds nothing loads it, and that is counted, not this.

        A level whose source has nothing is passed over. Only where the key's own is one, and no wider one has a value,
        is that what is found.
        """
        levels, counters = key.levels(), self._node.counters.of(key.family.data_type)
        found = self._levels_in_l1(levels, after) if use_memory else {}
        soft = b""
        lacking = []
        for level in levels:
            if level.l1 not in found:
                lacking.append(level)
            elif _is_value(found[level.l1]):
                break
        if lacking and self._enabled:
            came, soft = await self._levels_in_l2(lacking, after, use_memory)
            found.update(came)
        best = next((level for level in levels if _is_value(found.get(level.l1, MISSING))), key)
        value = found.get(best.l1, MISSING)
        if value is MISSING:
            counters.misses += not loads_next
            return Found(MISSING, None)
        if best in lacking:
            counters.l2_hits += 1
            return Found(value, "l2", soft=soft if best is key else b"")
        counters.l1_hits += 1
        return Found(value, "l1")

    def _levels_in_l1(self, levels: Sequence[Key], after: Position | None) -> dict[str, object]:
        """What L1 has of these levels, down to the first value; MISSING where it remembers that L2 has nothing."""
        found: dict[str, object] = {}
        for level in levels:
            entry = self._present(level, after)
            if entry is None:
                continue
            extra = details(entry)
            value = found[level.l1] = MISSING if extra is not None and extra.absent else handed_out(entry)
            if _is_value(value):
                break
        return found

    async def _levels_in_l2(
        self, levels: list[Key], after: Position | None, use_memory: bool
    ) -> tuple[dict[str, object], bytes]:
        """What L2 has of these levels; and the version of the first, where that is past its soft expiry."""
        shard = self._node.shards[levels[0].shard]
        remembers = use_memory and self._fetch.policies.rules(levels[0].family.data_type).l1
        as_of = AsOf(shard.reserve(), self._clock())
        try:
            answers = await self._fetch.answers(levels, after, admit=use_memory)
        except L2Unavailable:
            if not self._outage_is_a_miss():
                raise
            return {}, b""
        for level, (value, _) in zip(levels, answers, strict=True):
            if value is MISSING and remembers:
                self._node.admit_absent(level, as_of.reservation, min(as_of.at_s, shard.fresh_as_of_s))
        soft = self._fetch.soft_of(levels[0], *answers[0])
        return {level.l1: value for level, (value, _) in zip(levels, answers, strict=True)}, soft

    def _outage_is_a_miss(self) -> bool:
        """Count an outage met by a read; whether it is to look like a miss."""
        self._node.counters.l2_errors += 1
        return self._outage_is_miss

    def _present(self, key: Key, after: Position | None) -> Entry | None:
        """The entry that L1 may serve, absent markers included."""
        if key.l1 not in self._node.l1.entries:
            return None
        if not _reached(self._node.shards[key.shard], after):
            return None
        return self._node.peek(key, self._clock())

    def remembered(self, key: Key, after: Position | None) -> Entry | None:
        """The entry that L1 may serve; a remembered absence is only of use to a search."""
        entry = self._present(key, after)
        extra = None if entry is None else details(entry)
        return None if extra is not None and extra.absent else entry


def _reached(shard: Shard, after: Position | None) -> bool:
    """Whether this node has applied what a token stands for, if there is one."""
    return after is None or shard.honours(after.epoch, after.seq)


def _is_value(found: object) -> bool:
    return found is not MISSING and found is not NOT_FOUND


def handed_out(entry: Entry) -> object:
    """What a caller is given of an entry: NOT_FOUND, a copy of its own where the policy wants that, or the value."""
    if entry.freq < 3:  # as the fast path does: what is asked for by UUIDs, or is handed out in copies, is no less hot
        entry.freq += 1
    extra = details(entry)
    if extra is None:
        return entry.value
    if extra.not_found:
        return NOT_FOUND
    return entry.value if extra.decode is None else extra.decode()
