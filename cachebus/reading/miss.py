"""What a flight does: the read that misses, from L2 to the source and back.

1. Ask L2 by a plain get. What it has is the answer.
2. Ask L2 for the lease, the right to load. While another node holds it, wait: to be woken, or to ask again.
3. L2 may know better than to load: the source rests after a failure, or another node takes too long. Then an expired
   value is the answer, if there is one.
4. Load, and fill. By what L2 has answered, `SourceLoad` keeps the value in L2 and L1, in L1 alone, or nowhere.
"""

from __future__ import annotations

from cachebus.core.details import details
from cachebus.core.ports import LeaseOutcome, Stale
from cachebus.errors import L2Unavailable, LoadTimeout
from cachebus.reading.background import Background
from cachebus.reading.fetch import MISSING
from cachebus.reading.flight import Flight
from cachebus.reading.lease import Lease, LeaseAnswer
from cachebus.reading.load import SourceLoad
from cachebus.reading.look_up import look_up
from cachebus.reading.parts import LoadParts
from cachebus.reading.request import Found
from cachebus.reading.resting import Rest

BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 0.1
BACKOFF_GROWTH = {True: 2.0, False: 1.25}
"""By whether the end of a lease is told on the store's own channel: where it is not, polling alone must be quick."""


class Miss:
    """One flight under way."""

    __slots__ = ("_background", "_flight", "_key", "_lease", "_load", "_node", "_parts")

    def __init__(self, parts: LoadParts, background: Background, flight: Flight) -> None:
        self._parts, self._background, self._flight = parts, background, flight
        self._node, self._key = parts.fetch.node, flight.request.key
        self._lease = Lease(parts.fetch, flight.request, parts.lease_ms, flight.departure.spent_s)
        self._load = SourceLoad(parts, flight, self._lease)

    async def run(self) -> Found:
        """What L2 has, else what the source gives."""
        with self._lease:
            if not self._parts.enabled:
                return await self._load.unkept()
            try:
                answer = None if self._is_blocked() else await self._ask_l2()
            except L2Unavailable:
                self._node.counters.l2_errors += 1
                answer = None
            if isinstance(answer, Found):
                return answer
            self._release_waiters()
            if answer is None:
                return await self._go_on_without_l2()
            if answer.outcome is LeaseOutcome.GUARDED:
                return await self._load.guarded(answer)
            return await self._load.under_lease(answer)

    def _is_blocked(self) -> bool:
        """Whether L2 may hold what an invalidation has replaced of which it does not know yet."""
        blocked = self._node.blocked
        return blocked is not None and blocked.covers(self._key, self._flight.request.tags)

    # -- what L2 answers ------------------------------------------------------------------------------------------

    async def _ask_l2(self) -> Found | LeaseAnswer:
        """What L2 has, or what may be served while the source rests or another node loads for too long; else the right
        to load, or word of a guard."""
        if not self._flight.departure.must_load:
            found = await self._lease.budget.spent_on(
                look_up(self._parts, self._flight.request, self._background.refresh)
            )
            if found.value is not MISSING:
                return found
        answer = await self._ask_for_lease()
        if isinstance(answer, LeaseAnswer) and answer.outcome is LeaseOutcome.RESTING:
            return self._rested(answer) or await self._ask_for_lease(insists=True)
        return answer

    async def _ask_for_lease(self, *, insists: bool = False) -> Found | LeaseAnswer:
        """The right to load, or what another node filled meanwhile; waits as long as a load may take.

        `insists`: the source is not left alone, though it has failed somebody just now.
        """
        flight, clock = self._flight, self._node.clock
        flight.fresh.begin_anew(clock())  # what comes now is no plain get's
        deadline_s = clock() + flight.request.patience_s
        backoff_s, refresh, nothing_would_do = BACKOFF_FIRST_S, flight.departure.must_load, insists
        while True:
            stale = Stale.NONE if nothing_would_do else self._would_do()
            answer = await self._lease.ask(flight.tags, refresh=refresh, stale=stale)
            if answer.outcome is LeaseOutcome.HIT:
                found = self._lease.hit(answer)
                if found is not None:
                    self._parts.rests.end(self._key.l1)  # the source has answered another node
                    return found
                refresh = True  # what lies there can't be decoded
                continue
            self._note_fallback(answer)
            if answer.outcome is not LeaseOutcome.WAIT:
                return answer
            # L2 has sent its expired record, and it is no fallback: have it not send the same again at each turn.
            nothing_would_do = nothing_would_do or (answer.reply.record is not None and flight.fallback is None)
            self._release_waiters()
            self._lease.wait_anew()
            pause_s, left_s = min(backoff_s, max(answer.reply.wait_ms, 1) / 1000), deadline_s - clock()
            # 1. A pause that ends after the deadline: this flight asks once more.
            # 2. No turn within `BACKOFF_MAX_S` after the deadline: it gives up.
            if left_s < 0 or not await self._parts.waiters.wait(self._key.l1, pause_s, left_s + BACKOFF_MAX_S):
                return self._waited_in_vain()
            backoff_s = min(backoff_s * BACKOFF_GROWTH[self._parts.hints], BACKOFF_MAX_S)

    def _would_do(self) -> Stale:
        """What this flight could serve instead of a load."""
        if self._flight.fallback is not None:
            return Stale.OWN
        return Stale.RECORD if self._flight.request.rules.fail_safe_s else Stale.NONE

    def _note_fallback(self, answer: LeaseAnswer) -> None:
        """Take what L2 keeps of the key for the time being. Where L2 tells that it has nothing, or that the source has,
        what is held here is no fallback either."""
        reply, flight = answer.reply, self._flight
        waits_with_its_own = reply.outcome is LeaseOutcome.WAIT and (flight.fallback is None or reply.record == b"")
        kept = self._lease.fallback(answer) if reply.record else None
        if kept is not None or not (waits_with_its_own or reply.outcome is LeaseOutcome.GUARDED):
            flight.fall_back_on(kept)

    def _release_waiters(self) -> None:
        """L2 has been looked into, and it is up to the source: where that has failed before, it may hang now."""
        fallback = self._flight.fallback
        if fallback is not None and self._parts.rests.of(self._key.l1, fallback.version) is not Rest.NONE:
            self._flight.release_waiters()

    def _waited_in_vain(self) -> Found:
        """Another node has been loading for too long: who has something to serve need not wait as long again."""
        stale = self._flight.usable_fallback()
        if stale is None:
            raise LoadTimeout(f"another node has been loading for {self._flight.request.patience_s:g} s")
        self._load.rest()
        return stale

    def _rested(self, answer: LeaseAnswer) -> Found | None:
        """The source has failed somebody just now: what is expired is served, and it is left alone. None where nothing
        can be served: then it is asked all the same."""
        flight = self._flight
        stale = flight.usable_fallback()
        if stale is None or flight.fallback is None:
            flight.fall_back_on(None)
            return None
        # The rest in L2 may be nearly over: `heed_s` keeps the source known as one that has failed for a while longer.
        heed_s = flight.request.rules.fail_safe_throttle_s
        self._parts.rests.begin(self._key.l1, answer.reply.wait_ms / 1000, flight.fallback.version, heed_s=heed_s)
        return stale

    # -- without L2 -----------------------------------------------------------------------------------------------

    async def _go_on_without_l2(self) -> Found:
        """Without L2: what this node has loaded while the flight waited for L2, or is loading, else the source."""
        flight, request = self._flight, self._flight.request
        entry = self._parts.reader.remembered(self._key, request.after) if request.use_memory else None
        if entry is not None:
            extra = details(entry)
            return Found(entry.value, "l1", copy=None if extra is None else extra.decode)
        other = self._parts.flights.find_without_l2(self._key.l1)
        shared = request._replace(tags=flight.tags, ttl_s=flight.ttl_s)
        if other is not None and other.joinable(shared):
            flight.make()  # who comes now has its wishes heeded by neither, if they are others
            other.add(shared)
            return await other.wait()
        return await self._load.without_l2()
