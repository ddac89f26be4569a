"""The path of a read that may load: the flight already under way, else L2, else lease and load, then fill."""

from __future__ import annotations

import asyncio

from loguru import logger

from cachebus.clock import Clock
from cachebus.errors import ConfigError, L2Unavailable, LoadTimeout
from cachebus.fetch import MISSING, Fetcher
from cachebus.fill import Filler
from cachebus.flight import Flight, Flights
from cachebus.freshness import Fallback, Freshness
from cachebus.node import details
from cachebus.ports import Leased, LeaseReply, Stale
from cachebus.read import Reader, handed_out
from cachebus.reentrance import check
from cachebus.request import Found, Loaded, Request
from cachebus.resting import Rest, Rests
from cachebus.waiting import Waiters

BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 0.1
BACKOFF_GROWTH = {True: 2.0, False: 1.25}
"""By whether the end of a lease is told on the store's own channel: where it is not, polling alone must be quick."""
REFRESH = "\x1frefresh"
LOOK = "\x1flook"
REFRESH_AGAIN_S = LOOK_AGAIN_S = 1.0
"""About so long nobody on this node tries to refresh what another node refreshes just now, or looks into L2 again for
what another node may have loaded from a source that rests here."""
PROMPT_S = 0.05
"""So long a reader waits for a source that has failed just now, where L2 alone has something to serve."""
NOTHING = Found(MISSING, None)


class Loads:
    """Reads of one cache that may ask the source."""

    def __init__(
        self, reader: Reader, fetcher: Fetcher, waiters: Waiters, clock: Clock, *, lease_ms: int, enabled: bool,
        hints: bool = True,
    ) -> None:  # fmt: skip
        self._reader, self._fetch = reader, fetcher
        self._node, self._store = fetcher.node, fetcher.store
        self._waiters = waiters
        self._clock = clock
        self._lease_ms = lease_ms
        self._enabled = enabled
        self._growth = BACKOFF_GROWTH[hints]
        self.flights = Flights()
        self.rests, self.pauses = Rests(clock), Rests(clock)

    async def get_or_load(self, request: Request) -> Found:
        """What L1 or L2 holds, else what the source gives; one load a key and node, and one over all nodes."""
        key = request.key
        searches = request.search and key.contexts != (None, None, None)
        entry = self._reader.remembered(key, request.after) if request.use_memory else None
        extra = None if entry is None else details(entry)
        if entry is not None and not (searches and extra is not None and extra.not_found):  # else a wider one may know
            self._node.counters.of(key.family.data_type).l1_hits += 1
            if extra is not None and extra.soft_until <= self._clock():
                self._refresh(request, extra.version)
            return Found(handed_out(entry), "l1")
        if searches:
            found = await self._searched(request)
            if found.level is not None:
                return found
        check(self, key)
        fallback, rest = self._fallback(request), self.rests.of(key.l1)
        flight = self._joined(request)
        if fallback is not None and rest is not Rest.NONE:
            if flight is None and rest is Rest.OVER:
                self._begun(request, fallback).keep()  # by one: no reader waits for a source that hangs
            elif flight is None:
                self._look(request)
            return self._counted(request, fallback.found)
        flight = flight or self._begun(request, fallback)
        soft_s = request.rules.load_soft_timeout_s
        if rest is not Rest.NONE:  # L2 may have something to serve meanwhile
            soft_s = PROMPT_S if soft_s is None else min(soft_s, PROMPT_S)
        return self._counted(request, await flight.wait(soft_s))

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
            self._refresh(request, found.soft)
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

    def _freshness(self, request: Request) -> Freshness:
        """As fresh as a plain get sent now would be: as the marks that judge it, which the lease's probe brought."""
        shard, now_s = self._node.shards[request.key.shard], self._clock()
        as_of_s = shard.vouched_s if now_s < shard.valid_until else now_s
        return Freshness(shard, request.key, request.tags, as_of_s)

    def _fallback(self, request: Request) -> Fallback | None:
        """An expired value in L1, to be served while the source fails or is slow; none to a read with a token that this
        node has yet to reach. "Not found" is no value."""
        key, shard = request.key, self._node.shards[request.key.shard]
        if not request.use_memory:
            return None
        if request.after is not None and not shard.honours(request.after.epoch, request.after.seq):
            return None
        entry = self._node.standing_in(key, self._clock())
        extra = None if entry is None else details(entry)
        if entry is None or extra is None or extra.not_found or extra.absent:
            return None
        fresh = Freshness(shard, key, extra.tags, entry.read_until - shard.bound_s)
        return Fallback(Found(entry.value, "l1", stale=True, copy=extra.decode), fresh)

    async def _fly(self, flight: Flight) -> Found:
        """One flight: L2, else lease and load, then fill; without L2, the source alone."""
        request = flight.request
        filler = Filler(self._fetch, request, self._lease_ms)
        if not self._enabled:
            return filler.not_kept(await self._source(flight), flight)
        reply: LeaseReply | None = None
        if self._node.withheld is None or not self._node.withheld.covers(request.key, request.tags):
            try:
                found = NOTHING if flight.must_load else await self._asked(flight)
                if found.value is not MISSING:
                    return found
                reply = await self._lease(flight, filler)
                if reply.outcome is Leased.RESTING:
                    stale = self._rested(flight, filler, reply)
                    if stale is not None:
                        return stale
                    reply = None  # should L2 go away now, there is none
                    reply = await self._lease(flight, filler, insists=True)
            except L2Unavailable:
                self._node.counters.l2_errors += 1
            except LoadTimeout:  # another node's load
                stale = flight.substitute()
                if stale is None:
                    raise
                return stale
        if reply is None:
            return await self._alone(flight, filler)
        match reply.outcome:
            case Leased.HIT:
                self.rests.end(request.key.l1)
                return filler.hit
            case Leased.GUARDED:
                return await self._guarded(flight, filler, reply)
            case _:
                return await self._granted(flight, filler)

    async def _asked(self, flight: Flight) -> Found:
        """What L2 has, by a plain get where this node may judge it; past its soft expiry it is loaded meanwhile."""
        request = flight.request
        seen = await self._fetch.found(request.key, request.after, enter=request.use_memory)
        if seen.soft:
            self._refresh(request, seen.version)
        elif seen.value is not MISSING:
            self.rests.end(request.key.l1)  # the source has answered another node
        return Found(seen.value, "l2", copy=seen.copy)

    async def _lease(self, flight: Flight, filler: Filler, *, insists: bool = False) -> LeaseReply:
        """The right to load, or the record that another node filled meanwhile; waits as long as a load may take.
        `insists`: the source is not left alone, though it has failed somebody just now."""
        flight.fresh.begin_anew(self._clock())  # what comes now is no plain get's
        deadline_s = self._clock() + flight.request.patience_s
        backoff_s, refresh = BACKOFF_FIRST_S, flight.must_load
        while True:
            stale = Stale.NONE if insists else self._stale(flight)
            reply = await filler.lease(flight.tags, refresh=refresh, stale=stale)
            if reply.outcome is Leased.HIT:
                filler.hit = filler.taken(reply.record)
                if filler.hit.value is not MISSING:
                    return reply
                refresh = True  # what lies there can't be decoded
                continue
            self._fall_back(flight, filler, reply)
            if reply.outcome is not Leased.WAIT:
                return reply
            pause_s, left_s = min(backoff_s, max(reply.wait_ms, 1) / 1000), deadline_s - self._clock()
            # Whose pause ends behind the deadline asks once more; who has had no turn by then is too late.
            if left_s < 0 or not await self._waiters.wait(filler.key.l1, pause_s, left_s + BACKOFF_MAX_S):
                raise LoadTimeout(f"another node has been loading for {flight.request.patience_s:g} s")
            backoff_s = min(backoff_s * self._growth, BACKOFF_MAX_S)

    @staticmethod
    def _fall_back(flight: Flight, filler: Filler, reply: LeaseReply) -> None:
        """Take what L2 keeps of the key for the time being. Where it tells the one who is to load that this is nothing,
        what is held here is no fallback either."""
        try:
            kept = None if reply.record is None else filler.fallback(reply.record)
        except BaseException:  # a validator may raise anything
            filler.release()
            raise
        if reply.outcome is Leased.GRANTED and reply.record is None:
            flight.fallback = None
        else:
            flight.fallback = kept or flight.fallback

    @staticmethod
    def _stale(flight: Flight) -> Stale:
        if flight.fallback is not None:
            return Stale.OWN
        return Stale.RECORD if flight.request.rules.fail_safe_s else Stale.NONE

    # -- what L2 may answer -----------------------------------------------------------------------------------------

    async def _granted(self, flight: Flight, filler: Filler, over: bytes = b"") -> Found:
        """Load, and offer it to L2; whatever happens, the lease is given back. Whoever comes once no guard can stand
        that a takeover has lost must not join what began before."""
        doubtful_until_s = self._node.doubtful_until_s(filler.key.shard)
        if filler.began_s < doubtful_until_s:
            flight.fresh.end_at(doubtful_until_s)
        try:
            found = await self._source(flight)
        except ConfigError:  # the program's error, not the source's
            filler.release()
            raise
        except Exception:
            filler.rest(self._rest(flight))
            stale = flight.substitute()
            if stale is None:
                raise
            return stale
        except BaseException:
            filler.release()
            raise
        return await filler.fill(found, flight, over)

    async def _guarded(self, flight: Flight, filler: Filler, reply: LeaseReply) -> Found:
        """What a guard covers may change at the source at any moment: no level may keep it, and who comes when the
        guard may be over must not join."""
        flight.fresh.end_at(filler.began_s + reply.wait_ms / 1000)
        self._node.counters.guarded_loads += 1
        return filler.not_kept(await self._source(flight), flight)

    def _rested(self, flight: Flight, filler: Filler, reply: LeaseReply) -> Found | None:
        """The source has failed somebody just now: what is expired is served, and it is left alone. None where nothing
        can be served: then it is asked all the same."""
        stale = flight.substitute()
        if stale is None:
            flight.fallback = None
        else:
            self.rests.begin(filler.key.l1, reply.wait_ms / 1000)
        return stale

    async def _alone(self, flight: Flight, filler: Filler) -> Found:
        """Without L2: what this node has loaded while the flight waited for L2, or is loading, else the source."""
        request = flight.request
        key = request.key
        entry = self._reader.remembered(key, request.after) if request.use_memory else None
        if entry is not None:
            extra = details(entry)
            return Found(entry.value, "l1", copy=None if extra is None else extra.decode)
        other = self.flights.alone.get(key.l1)
        if other is not None and other.joinable(request):
            other.add(request)
            return await other.wait()
        filler.begin_alone()
        flight.fresh.begin_anew(filler.began_s)  # what comes now is the source's
        flight.fresh.end_at(filler.began_s + self._node.bound_s)  # whatever guard stands, L2 was not asked
        self.flights.alone[key.l1] = flight
        try:
            return filler.keep_alone(await self._source(flight), flight)
        except ConfigError:
            raise
        except Exception:
            self._rest(flight)
            stale = flight.substitute()
            if stale is None:
                raise
            return stale
        finally:
            if self.flights.alone.get(key.l1) is flight:
                del self.flights.alone[key.l1]

    def _rest(self, flight: Flight) -> float:
        """The source has failed: on this node the key rests. For how long, in seconds."""
        return self.rests.begin(flight.request.key.l1, flight.request.rules.fail_safe_throttle_s)

    async def _source(self, flight: Flight) -> Found:
        """Run the source."""
        request, counters = flight.request, self._node.counters
        of_type = counters.of(request.key.family.data_type)
        of_type.loads += 1
        started_s = self._clock()
        try:
            loaded = await _uncancelled(request)
        except Exception as error:
            self.note_failure(request.key.family.data_type, error)
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

    # -- refresh ahead ------------------------------------------------------------------------------------------------

    def _refresh(self, request: Request, version: bytes) -> None:
        """Load again in the background, over exactly the version that is there; one node does, all serve on. What has
        brought nothing is not tried again at once."""
        name = request.key.l1 + REFRESH
        if not self._enabled or self.flights.find(name) is not None:
            return
        if Rest.RESTS in (self.rests.of(request.key.l1), self.pauses.of(name)):
            return
        flight = Flight(self, request, self._freshness(request), self._clock)
        flight.keep()
        self.flights.begin(name, flight, lambda flight: self._refreshed(flight, version))

    async def _refreshed(self, flight: Flight, version: bytes) -> Found:
        request = flight.request
        name, throttle_s = request.key.l1 + REFRESH, request.rules.fail_safe_throttle_s
        # Another node's refresh, if there was one, enters L1 by this.
        there = await self._fetch.found(request.key, None, enter=request.enters)
        if there.value is not MISSING and there.version != version:
            self.rests.end(request.key.l1)
            return Found(there.value, "l2")
        filler = Filler(self._fetch, request, self._lease_ms)
        reply = await filler.lease(flight.tags, refresh=True, stale=Stale.OWN)
        if reply.outcome is not Leased.GRANTED:  # somebody else is at it, or it is to be left alone
            rest_s = reply.wait_ms / 1000 if reply.outcome is Leased.RESTING else REFRESH_AGAIN_S
            self.pauses.begin(name, min(rest_s, throttle_s))
            return NOTHING
        self._node.counters.of(request.key.family.data_type).refreshes += 1
        # Where L2 has lost the record, it is stored anew.
        found = await self._granted(flight, filler, version if reply.record is not None else b"")
        if not filler.stored:
            self.pauses.begin(name, throttle_s)
        return found

    def _look(self, request: Request) -> None:
        """While its source rests, see now and then whether another node has loaded it since."""
        name = request.key.l1 + LOOK
        if self.flights.find(name) is None and self.pauses.of(name) is not Rest.RESTS:
            self.pauses.begin(name, LOOK_AGAIN_S)
            flight = Flight(self, request, self._freshness(request), self._clock)
            flight.keep()
            self.flights.begin(name, flight, self._looked)

    async def _looked(self, flight: Flight) -> Found:
        try:
            return await self._asked(flight)
        except L2Unavailable:
            self._node.counters.l2_errors += 1
            return NOTHING


async def _uncancelled(request: Request) -> Loaded:
    """What the source gives. One that was cancelled from within has failed; only the flight's end is a cancellation."""
    try:
        return await request.load()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise LoadTimeout("the load was cancelled from within, as by a time limit of its own") from None
