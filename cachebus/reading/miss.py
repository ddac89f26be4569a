"""What a flight does: the read that misses, from L2 to the source and back.

1. Ask L2 by a plain get. What it has is the answer.
2. Ask L2 for the fill lease, the right to load. While another node holds it, wait: to be woken, or to ask again.
3. L2 may know better than to load: the source cools down after a failure, or another node takes too long. Then an
   expired value is the answer, if there is one.
4. Load, and fill. By what L2 has answered, `SourceLoad` keeps the value in L2 and L1, in L1 alone, or nowhere.
"""

from __future__ import annotations

from cachebus.core.details import details
from cachebus.core.ports import FillLeaseOutcome
from cachebus.core.requests import FallbackKind
from cachebus.errors import L2Unavailable, LoadTimeout
from cachebus.reading.background import Background
from cachebus.reading.cooldown import Cooldown
from cachebus.reading.fill_lease import DatedReply, ExpiredRecord, FillLease, version_of
from cachebus.reading.flight import Flight
from cachebus.reading.judge import MISSING
from cachebus.reading.load import SourceLoad
from cachebus.reading.look_up import look_up
from cachebus.reading.parts import LoadParts
from cachebus.reading.request import Found

BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 0.1
BACKOFF_GROWTH = {True: 2.0, False: 1.25}
"""By whether the store's own channel tells the end of a fill lease. Where it does not, only polling finds out, so the
pauses grow slowly."""


class Miss:
    """One flight under way."""

    __slots__ = ("_background", "_budget", "_fill_lease", "_flight", "_key", "_load", "_node", "_parts")

    def __init__(self, parts: LoadParts, background: Background, flight: Flight) -> None:
        self._parts, self._background, self._flight = parts, background, flight
        self._node, self._key = parts.fetch.node, flight.request.key
        self._budget = parts.fetch.budget(flight.departure.spent_s)
        self._fill_lease = FillLease(parts.fetch, flight.request, parts.lease_ms, self._budget)
        self._load = SourceLoad(parts, flight, self._fill_lease)

    async def run(self) -> Found:
        """What L2 has, else what the source gives."""
        with self._fill_lease:
            if not self._parts.enabled:
                return await self._load.unkept()
            # What L2 holds may be replaced by an invalidation that waits here: L2 does not know of it yet.
            is_blocked = self._node.is_blocked(self._key, self._flight.request.tags)
            try:
                answer = None if is_blocked else await self._ask_l2()
            except L2Unavailable as error:
                self._parts.fetch.refusals.count(error, "reads", self._key.family.data_type)
                answer = None
            if isinstance(answer, Found):
                return answer
            self._release_waiters()
            if answer is None:
                return await self._go_on_without_l2()
            if answer.outcome is FillLeaseOutcome.GUARDED:
                return await self._load.guarded(answer)
            return await self._load.under_fill_lease(answer)

    # -- what L2 answers ------------------------------------------------------------------------------------------

    async def _ask_l2(self) -> Found | DatedReply:
        """The value, where there is one without a load:

        1. what L2 has;
        2. the fallback, while the source cools down, or where another node loads for too long.

        Else L2's answer: the fill lease is granted, or a guard stands.
        """
        if not self._flight.departure.must_load:
            found = await self._budget.spent_on(look_up(self._parts, self._flight.request, self._background.refresh))
            if found.value is not MISSING:
                return found
        answer = await self._ask_for_fill_lease()
        if isinstance(answer, DatedReply) and answer.outcome is FillLeaseOutcome.COOLING_DOWN:
            return self._cooling_down(answer) or await self._ask_for_fill_lease(insists=True)
        return answer

    async def _ask_for_fill_lease(self, *, insists: bool = False) -> Found | DatedReply:
        """Ask until L2 answers anything but "wait", for as long as a load may take. Returns what another node has
        filled meanwhile, or L2's answer.

        `insists`: load, though the source has failed somebody just now.
        """
        flight, clock = self._flight, self._node.clock
        flight.fresh.date_from(clock())  # from here on L2 itself judges, as of now
        deadline_s = clock() + flight.request.patience_s
        backoff_s, refresh, unreadable = BACKOFF_FIRST_S, flight.departure.must_load, b""
        kind = FallbackKind.NONE if insists else self._fallback_kind()
        while True:
            dated = await self._fill_lease.ask(flight.tags, refresh=refresh, fallback=kind, unreadable=unreadable)
            if dated.outcome is FillLeaseOutcome.HIT:
                found = self._fill_lease.hit(dated)
                if found is not None:
                    self._parts.cooldowns.end(self._key.l1)  # the source has answered another node
                    return found
                # What lies there can't be read here. What another node loads in its place may be: that is no reason for
                # each node to load. But where two releases replace each other's records, this one gets its turn.
                refresh, unreadable = refresh or bool(unreadable), version_of(dated)
                continue
            self._note_fallback(dated)
            if dated.outcome is not FillLeaseOutcome.WAIT:
                return dated
            if dated.expired is ExpiredRecord.SENT and flight.fallback is None:
                kind = FallbackKind.NONE  # that is no fallback, and L2 need not send it again at each turn
            elif kind is not FallbackKind.NONE:
                kind = self._fallback_kind()
            self._release_waiters()
            self._budget.renew()  # from here on another node is waited for, not L2
            pause_s, left_s = min(backoff_s, max(dated.reply.wait_ms, 1) / 1000), deadline_s - clock()
            # 1. A pause that ends after the deadline: this flight asks once more.
            # 2. No turn within `BACKOFF_MAX_S` after the deadline: it gives up.
            if left_s < 0:
                return self._waited_in_vain()
            with flight.aside():
                is_turn = await self._parts.waiters.wait(self._key.l1, pause_s, left_s + BACKOFF_MAX_S)
            if not is_turn:
                return self._waited_in_vain()
            backoff_s = min(backoff_s * BACKOFF_GROWTH[self._parts.hints], BACKOFF_MAX_S)

    def _fallback_kind(self) -> FallbackKind:
        """What this flight could serve instead of a load. Who wants it anew is content with nothing else."""
        if self._flight.request.refresh:
            return FallbackKind.NONE
        if self._flight.fallback is not None:
            return FallbackKind.OWN
        return FallbackKind.RECORD if self._flight.request.rules.fail_safe_s else FallbackKind.NONE

    def _note_fallback(self, dated: DatedReply) -> None:
        """What L2 says of its expired record decides what the fallback is."""
        if self._flight.request.refresh:
            return
        match dated.expired:
            case ExpiredRecord.SENT:  # its record, where that may be one; in its place what this node holds is none
                self._flight.fall_back_on(self._fill_lease.fallback(dated))
            case ExpiredRecord.NONE:  # the source has answered somebody since: what this node holds is none either
                self._flight.fall_back_on(None)
            case ExpiredRecord.NOT_SENT:
                pass

    def _release_waiters(self) -> None:
        """Let callers have the fallback at once where the source has failed before: it may hang now."""
        fallback = self._flight.fallback
        if fallback is not None and self._parts.cooldowns.of(self._key.l1, fallback.version) is not Cooldown.NONE:
            self._flight.release_waiters()

    def _waited_in_vain(self) -> Found:
        """Another node has been loading for too long. The fallback is the answer, and the key cools down, so that the
        next caller need not wait as long again."""
        found = self._flight.usable_fallback()
        if found is None:
            raise LoadTimeout(f"another node has been loading for {self._flight.request.patience_s:g} s")
        self._load.begin_cooldown()
        return found

    def _cooling_down(self, dated: DatedReply) -> Found | None:
        """The source has failed somebody just now. The fallback is the answer, and the source is left alone. None where
        there is no fallback: then the source is asked all the same."""
        flight = self._flight
        found = flight.usable_fallback()
        if found is None or flight.fallback is None:
            flight.fall_back_on(None)
            return None
        # The cool-down in L2 may be nearly over: `heed_s` keeps the source known as one that failed for a while longer.
        heed_s = flight.request.rules.fail_safe_throttle_s
        self._parts.cooldowns.begin(self._key.l1, dated.reply.wait_ms / 1000, flight.fallback.version, heed_s=heed_s)
        return found

    # -- without L2 -----------------------------------------------------------------------------------------------

    async def _go_on_without_l2(self) -> Found:
        """Without L2 the answer is, unless it is wanted anew,

        1. what this node has loaded while the flight waited for L2;
        2. what another flight of this node loads without L2 just now;
        3. what the source gives.
        """
        flight, request = self._flight, self._flight.request
        if request.refresh:
            return await self._load.without_l2()
        entry = self._parts.reader.remembered(self._key, request.after) if request.use_memory else None
        if entry is not None:
            extra = details(entry)
            return Found(entry.value, "l1", copy=None if extra is None else extra.decode)
        other = self._parts.flights.find_without_l2(self._key.l1)
        shared = request._replace(tags=flight.tags, ttl_s=flight.ttl_s)
        if other is not None and other.joinable(shared):
            flight.fix_wishes()  # neither load could heed other wishes any more
            other.join(shared)
            with flight.aside():
                return await other.wait()
        return await self._load.without_l2()
