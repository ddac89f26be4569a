"""The path of a miss: the flight already under way, else L2, else lease and load, then fill."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from loguru import logger

from cachebus.clock import Clock
from cachebus.coherence import Shard
from cachebus.errors import L2Unavailable, LoadTimeout
from cachebus.fetch import MISSING, NOT_FOUND, VOID, Fetcher, needs_script
from cachebus.fill import Filler, Found, Load
from cachebus.keys import Key
from cachebus.l1 import Entry
from cachebus.loading import Flight, Flights, Waiters
from cachebus.node import details
from cachebus.policy import Rules
from cachebus.ports import Leased, LeaseReply, Place

BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 0.1
BACKOFF_GROWTH = {True: 2.0, False: 1.25}
"""By whether the end of a lease is told on the store's own channel: where it is not, polling alone must be quick."""


class Reader:
    """Reads that L1's fast path did not answer."""

    def __init__(
        self, fetcher: Fetcher, waiters: Waiters, clock: Clock, *, lease_ms: int, outage_is_miss: bool, enabled: bool,
        hints: bool = True,
    ) -> None:  # fmt: skip
        self._fetch = fetcher
        self._node = fetcher.node
        self._store = fetcher.store
        self._shards = fetcher.node.shards
        self._entries = fetcher.node.l1.entries
        self._waiters = waiters
        self._clock = clock
        self._lease_ms = lease_ms
        self._outage_is_miss = outage_is_miss
        self._enabled = enabled
        self._growth = BACKOFF_GROWTH[hints]
        self.flights: Flights[Found] = Flights()

    # -- get ------------------------------------------------------------------------------------------------------

    async def get(self, key: Key, after: Place | None, use_memory: bool) -> object:
        """The value, NOT_FOUND where the source has nothing, or MISSING; `L2Unavailable` unless an outage is a miss."""
        counters = self._node.counters.of(key.family.data_type)
        if use_memory and key.l1 in self._entries:
            entry = self._remembered(key, after)
            if entry is not None:
                counters.l1_hits += 1
                return _handed_out(entry)
        try:
            if self._node.withheld is not None and self._node.withheld.covers(key):
                value = MISSING
            elif after is None and self._enabled and self._fetch.may_judge(self._shards[key.shard], None):
                # What `Fetcher.one` does, without another coroutine around it: this is the path of every L2 hit.
                before = self._fetch.before(key)
                data = await self._store.get(key)
                value = MISSING if data is None else self._fetch.judged(key, data, before, use_memory)
                if value is VOID:
                    value = (await self._fetch.validated([key], None, enter=use_memory))[0]
            elif self._enabled:
                value = await self._fetch.one(key, after, enter=use_memory)
            else:
                value = MISSING
        except L2Unavailable as error:
            if needs_script(error):
                value = (await self._fetch.validated([key], after, enter=use_memory))[0]
            elif self._tolerated():
                value = MISSING
            else:
                raise
        if value is MISSING:
            counters.misses += 1
        else:
            counters.l2_hits += 1
        return value

    async def get_many(self, keys: Sequence[Key], after: Place | None) -> list[object]:
        """What `get` gives for each of these keys of one tenant; what L1 lacks comes in one round trip."""
        found: list[object] = [MISSING] * len(keys)
        lacking: list[int] = []
        for i, key in enumerate(keys):
            entry = self._remembered(key, after)
            if entry is None:
                lacking.append(i)
            else:
                found[i] = _handed_out(entry)
                self._node.counters.of(key.family.data_type).l1_hits += 1
        if lacking and self._enabled:
            try:
                values = await self._fetch.many([keys[i] for i in lacking], after)
            except L2Unavailable:
                if not self._tolerated():
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

    async def search(self, key: Key, after: Place | None, use_memory: bool) -> Found:
        """The most specific hit from the key's own level up to the tenant's; what is missing is remembered as such."""
        levels = key.levels()
        counters = self._node.counters.of(key.family.data_type)
        found: dict[str, object] = {}
        for level in levels if use_memory else ():
            entry = self._present(level, after)
            if entry is not None:
                absent = details(entry) is not None and details(entry).absent  # type: ignore[union-attr]
                found[level.l1] = MISSING if absent else _handed_out(entry)
                if not absent:
                    break
        lacking = []
        for level in levels:
            if level.l1 not in found:
                lacking.append(level)
            elif found[level.l1] is not MISSING:
                break
        if lacking and self._enabled:
            found.update(await self._levels(lacking, after, use_memory))
        for level in levels:
            value = found.get(level.l1, MISSING)
            if value is not MISSING:
                if level in lacking:
                    counters.l2_hits += 1
                    return Found(value, "l2")
                counters.l1_hits += 1
                return Found(value, "l1")
        counters.misses += 1
        return Found(MISSING, None)

    async def _levels(self, levels: list[Key], after: Place | None, use_memory: bool) -> dict[str, object]:
        shard = self._node.shards[levels[0].shard]
        reservation, started_s = shard.reserve(), self._clock()
        try:
            values = await self._fetch.many(levels, after, enter=use_memory)
        except L2Unavailable:
            if not self._tolerated():
                raise
            return {}
        for level, value in zip(levels, values, strict=True):
            if value is MISSING and use_memory:
                self._node.admit_absent(level, reservation, min(started_s, shard.vouched_s))
        return {level.l1: value for level, value in zip(levels, values, strict=True)}

    def _tolerated(self) -> bool:
        """Count an outage met by a read; whether it is to look like a miss."""
        self._node.counters.l2_errors += 1
        return self._outage_is_miss

    def _present(self, key: Key, after: Place | None) -> Entry | None:
        """The entry that L1 may serve, absent markers included."""
        if key.l1 not in self._node.l1.entries:
            return None
        if not _reached(self._shards[key.shard], after):
            return None
        return self._node.peek(key, self._clock())

    def _remembered(self, key: Key, after: Place | None) -> Entry | None:
        """The entry that L1 may serve; a remembered absence is only of use to a search."""
        entry = self._present(key, after)
        extra = None if entry is None else details(entry)
        return None if extra is not None and extra.absent else entry

    # -- get_or_load ------------------------------------------------------------------------------------------------

    async def get_or_load(
        self, key: Key, load: Load, rules: Rules, *, after: Place | None = None, search: bool = False,
        ttl_s: float | None = None, tags: Sequence[str] = (), use_memory: bool = True,
    ) -> Found:  # fmt: skip
        """What L1 or L2 holds, else what the source gives; one load a key and node, and one over all nodes."""
        counters = self._node.counters.of(key.family.data_type)
        if use_memory:
            entry = self._remembered(key, after)
            if entry is not None:
                counters.l1_hits += 1
                extra = details(entry)
                if extra is not None and extra.soft_until <= self._clock():
                    self._refresh(key, load, rules, extra.version, ttl_s, tags)
                return Found(_handed_out(entry), "l1")
        if search and key.contexts != (None, None, None):
            found = await self._search_or_miss(key, after, use_memory)
            if found.level is not None:
                return found
        flight = self.flights.find(key.l1)
        if flight is None or flight.task.done() or not self._joinable(key, flight, after):
            shard = self._shards[key.shard]
            flight = Flight(
                shard.reserve(), self._vouched_s(key), shard.standing(key.family.bucket, (*key.names, *tags))
            )
            self._stand_in(flight, key, after)
            flight.may_stand_in = partial(self._joinable, key, flight, None)
            self.flights.begin(
                key.l1, flight, lambda flight: self._fly(flight, key, load, rules, after, ttl_s, tags, use_memory)
            )
        found = await flight.join(rules.load_soft_timeout_s)
        if found.stale:
            counters.stale_served += 1
        return found

    async def _search_or_miss(self, key: Key, after: Place | None, use_memory: bool) -> Found:
        try:
            found = await self.search(key, after, use_memory)
        except L2Unavailable:
            return Found(MISSING, None)  # the load below finds out for itself, and goes to the source
        if found.level is None:
            self._node.counters.of(key.family.data_type).misses -= 1  # the flight counts it
        return found

    def _joinable(self, key: Key, flight: Flight[Found], after: Place | None) -> bool:
        """Whether a caller that comes now may share the flight: nothing replaced since, and no older than D or the
        lease allow; with a token, only if this node has applied it (then an older flight would be marked)."""
        shard = self._node.shards[key.shard]
        began = flight.reservation
        if not _reached(shard, after):
            return False
        if began.epoch != shard.epoch or shard.marked(began, key.l1, began.applied, key.everywhere):
            return False
        if flight.standing is not None and not shard.unmoved(key.family.bucket, flight.standing):
            return False
        now_s = self._clock()
        return now_s < flight.until_s and (now_s < shard.valid_until or now_s < flight.started_s + shard.bound_s)

    def _vouched_s(self, key: Key) -> float:
        """How fresh a plain get sent now would be: as the marks that judge it, which the lease's probe brought."""
        shard, now_s = self._node.shards[key.shard], self._clock()
        return shard.vouched_s if now_s < shard.valid_until else now_s

    def _stand_in(self, flight: Flight[Found], key: Key, after: Place | None) -> None:
        """Give the flight an expired value from L1, to be served while the source fails or is slow; none to a read with
        a token that this node has yet to reach."""
        shard = self._shards[key.shard]
        if not _reached(shard, after):
            return
        entry = self._node.standing_in(key, self._clock())
        if entry is not None:
            extra = details(entry)
            flight.stale = Found(_handed_out(entry), "l1", stale=True)
            flight.heed(shard.standing(key.family.bucket, () if extra is None else extra.tags))

    async def _fly(
        self, flight: Flight[Found], key: Key, load: Load, rules: Rules, after: Place | None,
        ttl_s: float | None, tags: Sequence[str], use_memory: bool,
    ) -> Found:  # fmt: skip
        """One flight: L2, else lease and load, then fill; without L2, the source alone."""
        counters = self._node.counters.of(key.family.data_type)
        if not self._enabled:
            counters.misses += 1
            return await self._load(flight, key, load, rules)
        filler = Filler(self._fetch, key, rules, self._lease_ms, ttl_s=ttl_s, tags=tags, enter=use_memory and rules.l1)
        lease = None
        withheld = self._node.withheld is not None and self._node.withheld.covers(key, tags)
        try:
            value = await self._fetch.one(key, after, enter=use_memory)
            if value is MISSING and not withheld:
                flight.started_s = self._clock()  # what comes now is no plain get's
                lease = await self._lease(flight, filler)
                value = filler.value_of(lease.record) if lease.outcome is Leased.HIT else MISSING
        except L2Unavailable:
            self._node.counters.l2_errors += 1
            value = MISSING
        if value is not MISSING:
            counters.l2_hits += 1
            return Found(value, "l2")
        counters.misses += 1
        if lease is not None and lease.outcome is Leased.GUARDED:
            # What it covers may change at the source at any moment: no level may keep it, and who comes when the guard
            # may be over must not join.
            flight.until_s = filler.began_s + lease.wait_ms / 1000
            self._node.counters.guarded_loads += 1
            return filler.not_kept(await self._load(flight, key, load, rules))
        if lease is None:
            return await self._alone(flight, filler, load, after, use_memory)
        try:
            found = await self._load(flight, key, load, rules)
        except BaseException:
            filler.release()
            raise
        if found.stale:
            filler.release()
            return found
        return await filler.fill(found)

    async def _alone(
        self, flight: Flight[Found], filler: Filler, load: Load, after: Place | None, use_memory: bool
    ) -> Found:
        """Without L2: what this node has loaded while the flight waited for L2, or is loading, else the source."""
        key = filler.key
        entry = self._remembered(key, after) if use_memory else None
        if entry is not None:
            return Found(_handed_out(entry), "l1")
        other = self.flights.alone.get(key.l1)
        if other is not None and self._joinable(key, other, after):
            return await other.join()
        filler.reserve_alone()
        flight.started_s = filler.began_s  # what comes now is the source's
        self.flights.alone[key.l1] = flight
        try:
            return await filler.keep_alone(await self._load(flight, key, load, filler.rules))
        finally:
            if self.flights.alone.get(key.l1) is flight:
                del self.flights.alone[key.l1]

    async def _lease(self, flight: Flight[Found], filler: Filler) -> LeaseReply:
        """The right to load, or the record that another node filled meanwhile; waits as long as a load may take."""
        deadline_s = self._clock() + filler.rules.load_timeout_s
        backoff_s = BACKOFF_FIRST_S
        while True:
            reply = await filler.lease()
            if reply.outcome is Leased.HIT and filler.value_of(reply.record) is MISSING:
                reply = await filler.lease(refresh=True)  # what lies there can't be decoded
            if reply.outcome is not Leased.WAIT:
                if reply.record is not None and reply.outcome is Leased.GRANTED and flight.stale is None:
                    filler.stand_in(flight, reply.record)
                return reply
            pause_s, left_s = min(backoff_s, max(reply.wait_ms, 1) / 1000), deadline_s - self._clock()
            # Whose pause ends behind the deadline asks once more; who has had no turn by then is too late.
            if left_s < 0 or not await self._waiters.wait(filler.key.l1, pause_s, left_s + BACKOFF_MAX_S):
                raise LoadTimeout(f"another node has been loading for {filler.rules.load_timeout_s:g} s")
            backoff_s = min(backoff_s * self._growth, BACKOFF_MAX_S)

    async def _load(self, flight: Flight[Found], key: Key, load: Load, rules: Rules) -> Found:
        """Run the source; when it fails, what is expired but was never invalidated stands in for it."""
        counters = self._node.counters
        counters.of(key.family.data_type).loads += 1
        started_s = self._clock()
        try:
            loaded = await load()
        except Exception as error:
            counters.of(key.family.data_type).load_errors += 1
            logger.warning("loading {} failed: {!r}", key.family.data_type, error)
            stale = flight.substitute()
            if stale is not None:
                return stale
            raise
        finally:
            counters.load_latency.observe(self._clock() - started_s)
        counters.of(key.family.data_type).not_found += loaded.value is None
        return Found(loaded.value, None, loaded)

    # -- refresh ahead ------------------------------------------------------------------------------------------------

    def _refresh(
        self, key: Key, load: Load, rules: Rules, version: bytes, ttl_s: float | None, tags: Sequence[str]
    ) -> None:
        """Load again in the background, over exactly the version that is there; one node does, all serve on."""
        name = key.l1 + "\x1frefresh"
        if self.flights.find(name) is not None or not self._enabled:
            return
        flight: Flight[Found] = Flight(self._node.shards[key.shard].reserve(), self._clock())
        flight.keep()
        filler = Filler(self._fetch, key, rules, self._lease_ms, ttl_s=ttl_s, tags=tags, enter=rules.l1, over=version)

        async def fly(flight: Flight[Found]) -> Found:
            await self._fetch.one(key, None)  # another node's refresh, if there was one, enters L1 by this
            entry = self._remembered(key, None)
            extra = None if entry is None else details(entry)
            if extra is None or extra.version != version:
                return Found(MISSING, None)
            reply = await filler.lease(refresh=True)
            if reply.outcome is not Leased.GRANTED:
                return Found(MISSING, None)
            self._node.counters.of(key.family.data_type).refreshes += 1
            try:
                found = await self._load(flight, key, load, rules)
            except BaseException:
                filler.release()
                raise
            return await filler.fill(found)

        self.flights.begin(name, flight, fly)


def _reached(shard: Shard, after: Place | None) -> bool:
    """Whether this node has applied what a token stands for, if there is one."""
    return after is None or shard.honours(after.epoch, after.seq)


def _handed_out(entry: Entry) -> object:
    if entry.freq < 3:  # as the fast path does: what is asked for by UUIDs, or is handed out in copies, is no less hot
        entry.freq += 1
    extra = details(entry)
    if extra is None:
        return entry.value
    if extra.not_found:
        return NOT_FOUND
    return entry.value if extra.decode is None else extra.decode()
