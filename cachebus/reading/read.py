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
from cachebus.reading.bypass import Bypass
from cachebus.reading.fetch import Fetcher, Seen, record_of
from cachebus.reading.judge import MISSING, NOT_FOUND, AsOf
from cachebus.reading.request import Found


class Reader:
    """Reads that L1's fast path did not answer."""

    def __init__(self, fetcher: Fetcher, *, outage_is_miss: bool = False, enabled: bool = True) -> None:
        """`outage_is_miss`: a read that L2 does not answer finds nothing, rather than raise `L2Unavailable`. `enabled`:
        whether anything is cached."""
        self._fetch, self._node, self._clock = fetcher, fetcher.node, fetcher.clock
        self.refusals = fetcher.refusals
        self._judge = fetcher.judge
        self.unreadable = fetcher.judge.unreadable
        self._outage_is_miss = outage_is_miss
        self._enabled = enabled
        self.bypass = Bypass()
        """Where reads pass the cache by: they find nothing."""

    # -- get ------------------------------------------------------------------------------------------------------

    async def get(self, key: Key, after: Position | None, use_memory: bool) -> object:
        """The value, NOT_FOUND where the source has nothing, or MISSING; `L2Unavailable` unless an outage is a miss."""
        if self.bypass.here():
            return MISSING
        counters = self._node.counters.of(key.family.data_type)
        entry = self.remembered(key, after) if use_memory else None
        if entry is not None:
            counters.l1_hits += 1
            return handed_out(entry)
        value = MISSING
        if self._enabled:
            try:
                value, _ = await self._fetch.read_one(key, after, admit=use_memory, decoded_by_others=self._held)
            except L2Unavailable as error:
                if not self.note_outage(error, key):
                    raise
        if value is MISSING:
            counters.misses += 1
        else:
            counters.l2_hits += 1
        return value

    def _held(self, key: Key) -> Seen | None:
        """What L1 has by now."""
        entry = self.remembered(key, None)
        return None if entry is None else (handed_out(entry), None)

    async def get_many(self, keys: Sequence[Key], after: Position | None) -> list[object]:
        """What `get` gives for each of these keys of one tenant; what L1 lacks comes in one round trip."""
        found: list[object] = [MISSING] * len(keys)
        if self.bypass.here():
            return found
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
                seen = await self._fetch.read([keys[i] for i in lacking], after)
            except L2Unavailable as error:
                if not self.note_outage(error, keys[lacking[0]]):
                    raise
            else:
                for i, (value, _) in zip(lacking, seen, strict=True):
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
        if self.bypass.here():
            return Found(MISSING, None)
        levels, counters = key.levels(), self._node.counters.of(key.family.data_type)
        found = self._levels_in_l1(levels, after) if use_memory else {}
        came: dict[str, Seen] = {}
        lacking = []
        for level in levels:
            if level.l1 not in found:
                lacking.append(level)
            elif _is_value(found[level.l1]):
                break
        if lacking and self._enabled:
            came = await self._levels_in_l2(lacking, after, use_memory)
            found.update((name, value) for name, (value, _) in came.items())
        best = next((level for level in levels if _is_value(found.get(level.l1, MISSING))), key)
        value = found.get(best.l1, MISSING)
        if value is MISSING:
            counters.misses += not loads_next
            return Found(MISSING, None)
        if best in lacking:
            counters.l2_hits += 1
            # What is refreshed is the key itself. A load of it in the place of a wider value would hide that one.
            return Found(value, "l2", soft_version=self._soft_version(key, came[key.l1]) if best is key else b"")
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

    async def _levels_in_l2(self, levels: list[Key], after: Position | None, use_memory: bool) -> dict[str, Seen]:
        """What L2 has of these levels; nothing of any where an outage is a miss."""
        shard = self._node.shards[levels[0].shard]
        remembers = use_memory and self._judge.rules(levels[0]).l1
        as_of = AsOf(shard.reserve(), self._clock())
        try:
            answers = await self._fetch.read(levels, after, admit=use_memory)
        except L2Unavailable as error:
            if not self.note_outage(error, levels[0]):
                raise
            return {}
        # A record of an epoch that this node has yet to enter counts as missing, too. So the absence is known as of no
        # later than the probe behind the lease, though L2 has answered just now.
        known_as_of_s = min(as_of.at_s, shard.fresh_as_of_s)
        for level, (value, _) in zip(levels, answers, strict=True):
            if value is MISSING and remembers:
                self._node.admit_absent(level, as_of.reservation, known_as_of_s)
        return {level.l1: seen for level, seen in zip(levels, answers, strict=True)}

    def _soft_version(self, key: Key, seen: Seen) -> bytes:
        """The version of what L2 has under the key, where that is past its soft expiry; else b""."""
        record = record_of(seen)
        return b"" if record is None else self._judge.soft_version(key.shard, record)

    def note_outage(self, error: L2Unavailable, key: Key) -> bool:
        """Count an outage met by a read; whether it is to look like a miss."""
        self._fetch.refusals.count(error, "reads", key.family.data_type)
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
