"""The path of a read that may load: the flight already under way, else L2, else lease and load, then fill."""

from __future__ import annotations

from loguru import logger

from cachebus.base.clock import Clock
from cachebus.core.details import details
from cachebus.core.ports import Leased, LeaseReply, Stale
from cachebus.errors import ConfigError, L2Unavailable, LoadTimeout
from cachebus.reading.background import NOTHING, Background
from cachebus.reading.fetch import MISSING, Fetcher
from cachebus.reading.fill import Filler
from cachebus.reading.flight import Flight, Flights, Fly
from cachebus.reading.freshness import Fallback, Freshness
from cachebus.reading.read import Reader, handed_out
from cachebus.reading.reentrance import check
from cachebus.reading.request import Failing, Found, Request
from cachebus.reading.resting import Rest, Rests
from cachebus.reading.waiting import Waiters

BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 0.1
BACKOFF_GROWTH = {True: 2.0, False: 1.25}
"""By whether the end of a lease is told on the store's own channel: where it is not, polling alone must be quick."""


class Loads:
    """Reads of one cache that may ask the source."""

    def __init__(
        self,
        reader: Reader,
        fetcher: Fetcher,
        waiters: Waiters,
        clock: Clock,
        *,
        lease_ms: int,
        enabled: bool,
        hints: bool = True,
    ) -> None:
        self._reader, self._fetch = reader, fetcher
        self._node, self._store = fetcher.node, fetcher.store
        self._waiters = waiters
        self._clock = clock
        self._lease_ms = lease_ms
        self._enabled = enabled
        self._growth = BACKOFF_GROWTH[hints]
        self.flights = Flights()
        self.rests = Rests(clock)
        self.background = Background(
            fetcher, self.rests, clock, self._in_background, self._granted, lease_ms=lease_ms, enabled=enabled
        )

    async def get_or_load(self, request: Request) -> Found:
        """What L1 or L2 holds, else what the source gives; one load a key and node, and one over all nodes."""
        key = request.key
        began_s = self._clock()
        searches = request.search and key.contexts != (None, None, None)
        entry = self._reader.remembered(key, request.after) if request.use_memory else None
        extra = None if entry is None else details(entry)
        if entry is not None and not (searches and extra is not None and extra.not_found):  # else a wider one may know
            self._node.counters.of(key.family.data_type).l1_hits += 1
            if extra is not None and extra.soft_until <= self._clock():
                self.background.refresh(request, extra.version)
            return Found(handed_out(entry), "l1")
        if searches:
            found = await self._searched(request)
            if found.level is not None:
                return found
        check(self, key)
        fallback = self._fallback(request)
        if fallback is not None and self.rests.of(key.l1, fallback.version) is Rest.RESTS:
            self.background.look(request)
            return self._counted(request, fallback.found)
        joined = self._joined(request)
        flight = joined or self._begun(request, fallback)
        if joined is None and searches:
            flight.spent_s = self._clock() - began_s
        found = await flight.wait(request)
        if joined is not None and found.stale and found.level == "l1" and not request.use_memory:
            found = await self._begun(request, None).wait(request)  # that is for others: who wants no memory loads
        return self._counted(request, found)

    def _counted(self, request: Request, found: Found) -> Found:
        """What one of the flight's callers is given."""
        counters = self._node.counters.of(request.key.family.data_type)
        if found.stale or found.level is None:
            counters.misses += 1
            counters.stale_served += found.stale
        elif found.level == "l2":
            counters.l2_hits += 1
        else:
            counters.l1_hits += 1
        return found.handed_out

    async def _searched(self, request: Request) -> Found:
        try:
            found = await self._reader.search(request.key, request.after, request.use_memory)
        except L2Unavailable:
            return NOTHING  # the load below finds out for itself, and goes to the source
        if found.level is None:
            self._node.counters.of(request.key.family.data_type).misses -= 1  # the flight's callers count it
        elif found.soft:
            self.background.refresh(request, found.soft)
        return found

    # -- flights ----------------------------------------------------------------------------------------------------

    def _joined(self, request: Request) -> Flight | None:
        flight = self.flights.find(request.key.l1)
        if flight is None or not flight.joinable(request):
            return None
        flight.add(request)
        return flight

    def _begun(self, request: Request, fallback: Fallback | None) -> Flight:
        """A new flight. One that follows another which does not know of a tag's invalidation may not take what that one
        has left in L2, either."""
        former = self.flights.find(request.key.l1)
        flight = Flight(self, request, self._freshness(request), self._clock)
        flight.fallback = fallback
        flight.must_load = former is not None and not former.fresh.knows(request.tags)
        self.flights.begin(request.key.l1, flight, self._fly)
        return flight

    def _in_background(self, name: str, request: Request, fly: Fly) -> None:
        """A flight for which nobody waits, unless there is one of this name."""
        if self.flights.find(name) is None:
            flight = Flight(self, request, self._freshness(request), self._clock)
            flight.keep()
            self.flights.begin(name, flight, fly)

    def _freshness(self, request: Request) -> Freshness:
        """As fresh as a plain get sent now would be: as what judges it, which the lease's probe brought."""
        shard, now_s = self._node.shards[request.key.shard], self._clock()
        as_of_s = shard.fresh_as_of_s if now_s < shard.valid_until else now_s
        return Freshness(shard, request.key, request.tags, as_of_s)

    def _fallback(self, request: Request) -> Fallback | None:
        """An expired value in L1, to be served while the source fails or is slow; none to a read with a token that this
        node has yet to reach. "Not found" is no value."""
        key, shard = request.key, self._node.shards[request.key.shard]
        if not request.use_memory:
            return None
        if request.after is not None and not shard.honours(request.after.epoch, request.after.seq):
            return None
        entry = self._node.fallback(key, self._clock())
        extra = None if entry is None else details(entry)
        if entry is None or extra is None:
            return None
        fresh = Freshness(shard, key, extra.tags, entry.read_until - shard.bound_s)
        return Fallback(Found(entry.value, "l1", stale=True, copy=extra.decode), fresh, extra.version)

    async def _fly(self, flight: Flight) -> Found:
        """One flight: L2, else lease and load, then fill; without L2, the source alone."""
        request = flight.request
        with Filler(self._fetch, request, self._lease_ms) as filler:
            filler.budget.spent_s = flight.spent_s
            if not self._enabled:
                return filler.not_kept(await self._whatever(flight), flight)
            answer: Found | LeaseReply | None = None
            if self._node.blocked is None or not self._node.blocked.covers(request.key, request.tags):
                try:
                    answer = await self._from_l2(flight, filler)
                except L2Unavailable:
                    self._node.counters.l2_errors += 1
            if isinstance(answer, Found):
                return answer
            self._spare(flight)
            if answer is None:
                return await self._without_l2(flight, filler)
            if answer.outcome is Leased.GUARDED:
                return await self._guarded(flight, filler, answer)
            return await self._granted(flight, filler)

    async def _from_l2(self, flight: Flight, filler: Filler) -> Found | LeaseReply:
        """What L2 has, or what may be served while the source rests or another node loads for too long; else the right
        to load, or word of a guard."""
        if not flight.must_load:
            found = await filler.budget.spent_on(self.background.asked(flight.request))
            if found.value is not MISSING:
                return found
        answer = await self._lease(flight, filler)
        if isinstance(answer, LeaseReply) and answer.outcome is Leased.RESTING:
            return self._rested(flight, answer) or await self._lease(flight, filler, insists=True)
        return answer

    async def _lease(self, flight: Flight, filler: Filler, *, insists: bool = False) -> Found | LeaseReply:
        """The right to load, or what another node filled meanwhile; waits as long as a load may take. `insists`: the
        source is not left alone, though it has failed somebody just now."""
        flight.fresh.begin_anew(self._clock())  # what comes now is no plain get's
        deadline_s = self._clock() + flight.request.patience_s
        backoff_s, refresh = BACKOFF_FIRST_S, flight.must_load
        while True:
            reply = await filler.lease(
                flight.tags, refresh=refresh, stale=Stale.NONE if insists else self._stale(flight)
            )
            if reply.outcome is Leased.HIT:
                found = filler.taken(reply.record)
                if found is not None:
                    self.rests.end(filler.key.l1)  # the source has answered another node
                    return found
                refresh = True  # what lies there can't be decoded
                continue
            self._fall_back(flight, filler, reply)
            if reply.outcome is not Leased.WAIT:
                return reply
            # What L2 keeps is brought once: where that is of no use, it is not asked for again at each turn.
            insists = insists or (reply.record is not None and flight.fallback is None)
            self._spare(flight)
            filler.budget.spent_s = 0.0  # from here on it waits for another node
            pause_s, left_s = min(backoff_s, max(reply.wait_ms, 1) / 1000), deadline_s - self._clock()
            # Whose pause ends behind the deadline asks once more; who has had no turn by then is too late.
            if left_s < 0 or not await self._waiters.wait(filler.key.l1, pause_s, left_s + BACKOFF_MAX_S):
                return self._out_waited(flight)
            backoff_s = min(backoff_s * self._growth, BACKOFF_MAX_S)

    def _out_waited(self, flight: Flight) -> Found:
        """Another node has been loading for too long: who has something to serve need not wait as long again."""
        stale = flight.usable_fallback()
        if stale is None:
            raise LoadTimeout(f"another node has been loading for {flight.request.patience_s:g} s")
        self._rest(flight)
        return stale

    @staticmethod
    def _fall_back(flight: Flight, filler: Filler, reply: LeaseReply) -> None:
        """Take what L2 keeps of the key for the time being. Where L2 tells that it has nothing, or that the source has,
        what is held here is no fallback either."""
        waits_with_its_own = reply.outcome is Leased.WAIT and (flight.fallback is None or reply.record == b"")
        kept = filler.fallback(reply.record) if reply.record else None
        if kept is not None or not (waits_with_its_own or reply.outcome is Leased.GUARDED):
            flight.fallback = kept

    def _spare(self, flight: Flight) -> None:
        """L2 has been looked into, and it is up to the source: where that has failed before, it may hang now."""
        fallback = flight.fallback
        if fallback is not None and self.rests.of(flight.request.key.l1, fallback.version) is not Rest.NONE:
            flight.spare()

    @staticmethod
    def _stale(flight: Flight) -> Stale:
        if flight.fallback is not None:
            return Stale.OWN
        return Stale.RECORD if flight.request.rules.fail_safe_s else Stale.NONE

    # -- what L2 may answer -----------------------------------------------------------------------------------------

    async def _granted(self, flight: Flight, filler: Filler, over: bytes = b"") -> Found:
        """Load, and offer it to L2. Whoever comes once no guard can stand that a takeover has lost must not join what
        began before."""
        doubtful_until_s = self._node.doubtful_until_s(filler.key.shard)
        if filler.began_s < doubtful_until_s:
            flight.fresh.end_at(doubtful_until_s)
        found = await self._tried(flight, filler)
        return found if found.stale else await filler.fill(found, flight, over)

    async def _guarded(self, flight: Flight, filler: Filler, reply: LeaseReply) -> Found:
        """What a guard covers may change at the source at any moment: no level may keep it, and who comes when the
        guard may be over must not join."""
        flight.fresh.end_at(filler.began_s + reply.wait_ms / 1000)
        self._node.counters.guarded_loads += 1
        return filler.not_kept(await self._whatever(flight), flight)

    def _rested(self, flight: Flight, reply: LeaseReply) -> Found | None:
        """The source has failed somebody just now: what is expired is served, and it is left alone. None where nothing
        can be served: then it is asked all the same."""
        stale = flight.usable_fallback()
        if stale is None or flight.fallback is None:
            flight.fallback = None
            return None
        # Of a rest there may be little left.
        heed_s = flight.request.rules.fail_safe_throttle_s
        self.rests.begin(flight.request.key.l1, reply.wait_ms / 1000, flight.fallback.version, heed_s=heed_s)
        return stale

    async def _without_l2(self, flight: Flight, filler: Filler) -> Found:
        """Without L2: what this node has loaded while the flight waited for L2, or is loading, else the source."""
        request = flight.request
        key = request.key
        entry = self._reader.remembered(key, request.after) if request.use_memory else None
        if entry is not None:
            extra = details(entry)
            return Found(entry.value, "l1", copy=None if extra is None else extra.decode)
        other = self.flights.without_l2.get(key.l1)
        shared = request._replace(tags=flight.tags, ttl_s=flight.ttl_s)
        if other is not None and other.joinable(shared):
            flight.make()  # who comes now has its wishes heeded by neither, if they are others
            other.add(shared)
            return await other.wait()
        filler.begin_without_l2()
        flight.fresh.begin_anew(filler.began_s)  # what comes now is the source's
        flight.fresh.end_at(filler.began_s + self._node.bound_s)  # whatever guard stands, L2 was not asked
        self.flights.without_l2[key.l1] = flight
        try:
            found = await self._tried(flight, filler)
            return found if found.stale else filler.keep_without_l2(found, flight)
        finally:
            if self.flights.without_l2.get(key.l1) is flight:
                del self.flights.without_l2[key.l1]

    async def _tried(self, flight: Flight, filler: Filler) -> Found:
        """What the source gives; where it fails, the key rests, and what is expired is given if that may be served."""
        try:
            try:
                return await self._source(flight)
            except Failing as failing:
                if flight.over or flight.refreshes or flight.usable_fallback() is not None:
                    raise failing.error from failing.error.__cause__
                return await self._made_instead(flight, failing)
        except ConfigError:  # the program's error, not the source's
            raise
        except Exception:
            filler.rest(self._rest(flight))
            stale = flight.usable_fallback()
            if stale is None:
                raise
            return stale

    async def _whatever(self, flight: Flight) -> Found:
        """What the source gives, or what is made instead: for its callers alone."""
        try:
            return await self._source(flight)
        except Failing as failing:
            return await self._made_instead(flight, failing)

    async def _made_instead(self, flight: Flight, failing: Failing) -> Found:
        """What can be made without the source. It is kept no longer than a source that has failed is left alone, and
        is no fallback."""
        try:
            loaded = await failing.instead()
        except Failing:
            raise failing.error from failing.error.__cause__
        except Exception as error:
            self.note_failure(flight.request.key.family.data_type, error)
            raise
        flight.makeshift = True
        flight.add(flight.request._replace(tags=(), ttl_s=flight.request.rules.fail_safe_throttle_s))
        return Found(loaded.value, None, loaded)

    def _rest(self, flight: Flight) -> float:
        """The source has failed: on this node the key rests. For how long, in seconds."""
        version = flight.refreshes if flight.fallback is None else flight.fallback.version
        return self.rests.begin(flight.request.key.l1, flight.request.rules.fail_safe_throttle_s, version)

    async def _source(self, flight: Flight) -> Found:
        """Run the source."""
        request, counters = flight.request, self._node.counters
        of_type = counters.of(request.key.family.data_type)
        of_type.loads += 1
        started_s = self._clock()
        try:
            loaded = await request.load()
        except Exception as error:
            self.note_failure(request.key.family.data_type, error.error if isinstance(error, Failing) else error)
            raise
        finally:
            counters.load_latency.observe(self._clock() - started_s)
        self.rests.end(request.key.l1)
        of_type.not_found += loaded.value is None
        return Found(loaded.value, None, loaded)

    def note_failure(self, data_type: str, error: BaseException) -> None:
        """Count and log that a source has failed: by its class alone, since a driver's text may hold a password."""
        self._node.counters.of(data_type).load_errors += 1
        logger.warning("loading {} failed: {}", data_type, type(error).__name__)
