"""A read that may load, as its caller sees it.

0. Inside `cache.bypassed()` the source alone is asked, and with `refresh` it is asked whatever is cached.
1. L1 has it.
2. A search finds it in L1 or L2 under a wider context.
3. The source cools down after a failure: an expired value is given.
4. A flight for this key is under way that suits the caller: join it.
5. Otherwise begin one. What it does is told in `cachebus.reading.miss`.

Steps 0, 1 and 3 to 5 decide without a wait; then the caller waits for the flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cachebus.core.details import details
from cachebus.core.ports import Position
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key
from cachebus.reading.background import Background
from cachebus.reading.coalescing import Coalescing
from cachebus.reading.cooldown import Cooldown
from cachebus.reading.fill_lease import FillLease
from cachebus.reading.flight import Departure, Flight, Flights
from cachebus.reading.freshness import Fallback, Freshness, fallback_in_l1
from cachebus.reading.judge import NOT_FOUND
from cachebus.reading.load import SourceLoad
from cachebus.reading.looked import CachedValue, looked_at
from cachebus.reading.miss import Miss
from cachebus.reading.parts import LoadParts
from cachebus.reading.read import handed_out
from cachebus.reading.reentrance import check
from cachebus.reading.request import Found, Request

ANEW, BYPASS = "\x1fanew", "\x1fbypass"
"""Behind the key's name, the names of flights that are nobody's who reads as ever."""


class Loads:
    """Reads of one cache that may ask the source."""

    def __init__(self, parts: LoadParts) -> None:
        self._parts = parts
        self._node, self._clock = parts.fetch.node, parts.fetch.clock
        self.background = Background(parts)
        self.coalescing = Coalescing()

    @property
    def flights(self) -> Flights:
        """The loads under way."""
        return self._parts.flights

    async def get_or_load(self, request: Request) -> Found:
        """What L1 or L2 holds, else what the source gives, None where that has nothing; one load a key and node, and
        one over all nodes. Raises what the source does, `LoadTimeout`, and `ConfigError` for a load that waits for
        itself."""
        passes = request.refresh or self._parts.reader.bypass.here()
        found = None if passes else self._in_memory(request)
        if found is None:
            found = await self._found(request)
            if request.joint is not None and found.loaded is not None:
                await request.joint.landed(self._parts.fetch.l2_timeout_s)
        return _given(found)

    async def get_or_load_many(self, requests: Sequence[Request]) -> list[Found]:
        """What L1 or L2 holds of each of these, else what the source gives, NOT_FOUND where that has nothing: all at
        once, and what one tick asks of L2 is one round trip. Raises, once all have ended, what the first of those does
        that fail."""
        passes = self._parts.reader.bypass.here()
        founds = [None if passes else self._in_memory(request) for request in requests]
        asking = [request for request, found in zip(requests, founds, strict=True) if found is None]
        # To end the others where one has failed would throw away what they load.
        answers = iter(await asyncio.gather(*map(self._found, asking), return_exceptions=True))
        given = []
        for known in founds:
            found_or_error = next(answers) if known is None else known
            if isinstance(found_or_error, BaseException):
                raise found_or_error
            given.append(_told_apart(found_or_error))
        return given

    async def look(self, key: Key, after: Position | None) -> CachedValue[object]:
        """What L1 or L2 holds, and what is known of it."""
        return await looked_at(self._parts, key, after)

    async def _found(self, request: Request) -> Found:
        """What is found where memory has nothing to serve."""
        if self._parts.reader.bypass.here():
            return await self._past_the_cache(request)
        if request.refresh:
            return await self._anew(request)
        found = await self._tried(request)
        while found is None:  # once at most: the next load is of now
            found = self._in_memory(request) or await self._tried(request, from_now_on=True)
        return found

    async def _tried(self, request: Request, *, from_now_on: bool = False) -> Found | None:
        """What is found in L2 or by a load; None where a load was shared that is not for who came when its source had
        been asked. `from_now_on`: share no such load. So those to whom that has happened share one that follows."""
        began_s = self._clock()
        found = await self._searched(request) if request.searches else None
        if found is not None:
            return found
        check(self.flights, request.key)
        fallback = fallback_in_l1(self._node, request)
        if fallback is not None and self._parts.cooldowns.of(request.key.l1, fallback.version) is Cooldown.ACTIVE:
            self.background.check_l2(request)
            return self._count(request, fallback.found)
        joined = self._join(request, from_now_on=from_now_on)
        if joined is None:
            spent_s = self._clock() - began_s if request.searches else 0.0
            return self._count(request, await self._begin(request, fallback, spent_s).wait(request))
        came_late = joined.has_asked
        found = await joined.wait(request)
        if found.is_of_first and came_late:
            return None
        if found.is_fallback and found.level == "l1" and not request.use_memory:
            found = await self._begin(request, None).wait(request)  # that is for others: who wants no memory loads
        return self._count(request, found)

    async def _anew(self, request: Request) -> Found:
        """What the source gives from now on. Others who want it anew share it until the source is asked; who is content
        with what is cached does not: it might be given an expired value where this one is told of an error."""
        check(self.flights, request.key)
        name = request.key.l1 + ANEW
        flight = self.flights.find(name)
        if flight is not None and not flight.has_asked and flight.joinable(request):
            flight.join(request)
            return self._count(request, await flight.wait())
        fresh = Freshness.of_a_get(self._node.shards[request.key.shard], request, self._clock())
        departure = Departure(request, fresh, must_load=True)
        return self._count(request, await self.flights.begin(name, departure, self._fly).wait())

    async def _past_the_cache(self, request: Request) -> Found:
        """What the source gives, for this caller alone: no level is looked at, none keeps it, nobody shares it."""
        check(self.flights, request.key)
        fresh = Freshness.of_a_get(self._node.shards[request.key.shard], request, self._clock())
        name = request.key.l1 + BYPASS
        flight = self.flights.begin(name, Departure(request, fresh, must_load=True), self._fly_past)
        return (await flight.wait()).handed_out

    async def _fly_past(self, flight: Flight) -> Found:
        fetch = self._parts.fetch
        with FillLease(fetch, flight.request, self._parts.lease_ms, fetch.budget()) as never_asked:
            return await SourceLoad(self._parts, flight, never_asked).unkept()

    def _in_memory(self, request: Request) -> Found | None:
        """What L1 may serve, counted; past its soft expiry it is loaded meanwhile."""
        entry = self._parts.reader.remembered(request.key, request.after) if request.use_memory else None
        if entry is None:
            return None
        extra = details(entry)
        if extra is not None and extra.not_found and request.searches:
            return None  # a wider context may know
        self._node.counters.of(request.key.family.data_type).l1_hits += 1
        soft_version = b"" if extra is None else extra.soft_version(self._clock())
        if soft_version:
            self.background.refresh(request, soft_version)
        return Found(handed_out(entry), "l1")

    async def _searched(self, request: Request) -> Found | None:
        """What the key's contexts or wider ones hold; counted, where it is something."""
        try:
            found = await self._parts.reader.search(request.key, request.after, request.use_memory, loads_next=True)
        except L2Unavailable:
            return None  # the load finds out for itself, and goes to the source
        if found.level is None:
            return None
        if found.soft_version:
            self.background.refresh(request, found.soft_version)
        return found

    def _join(self, request: Request, *, from_now_on: bool) -> Flight | None:
        flight = self.flights.find(request.key.l1)
        if flight is None or not flight.joinable(request) or (from_now_on and flight.has_asked):
            return None
        flight.join(request)
        return flight

    def _begin(self, request: Request, fallback: Fallback | None, spent_s: float = 0.0) -> Flight:
        """A new flight. One that follows another which does not know of a tag's invalidation may not take what that one
        has left in L2, either."""
        key, former = request.key, self.flights.find(request.key.l1)
        departure = Departure(
            request,
            Freshness.of_a_get(self._node.shards[key.shard], request, self._clock()),
            fallback,
            must_load=former is not None and not former.fresh.knows(request.tags),
            spent_s=spent_s,
        )
        return self.flights.begin(key.l1, departure, self._fly)

    async def _fly(self, flight: Flight) -> Found:
        return await Miss(self._parts, self.background, flight).run()

    def _count(self, request: Request, found: Found) -> Found:
        """What one of the flight's callers is given."""
        counters = self._node.counters.of(request.key.family.data_type)
        if found.is_fallback or found.level is None:
            counters.misses += 1
            counters.fallbacks += found.is_fallback
            if found.is_fallback and self._node.hooks.stale_served:
                self._node.hooks.tell("stale_served", request.key.l1, found.level)
        elif found.level == "l2":
            counters.l2_hits += 1
        else:
            counters.l1_hits += 1
        return found.handed_out


def _given(found: Found) -> Found:
    """What a caller is given: None where the source has nothing."""
    return found._replace(value=None) if found.value is NOT_FOUND else found


def _told_apart(found: Found) -> Found:
    """The same, with NOT_FOUND where the source has just said so: the None of who has stored that is a value."""
    nothing = found.loaded is not None and found.loaded.value is None
    return found._replace(value=NOT_FOUND) if nothing else found
