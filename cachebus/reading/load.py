"""One load: the source is asked, and what it gives is kept where it may be.

1. `under_fill_lease`: L2 has granted the fill lease. Its fill goes to L2, then to L1.
2. `guarded`: a write guard stands in L2. No level keeps what is loaded.
3. `without_l2`: L2 is out of reach. L1 alone keeps it, within the staleness bound.
4. `unkept`: nothing is cached at all.

Where the source fails, the key cools down in cases 1 and 3, and an expired value is given if there is one that may be.
"""

from __future__ import annotations

from cachebus.base.log import logger
from cachebus.core.node import Node
from cachebus.errors import ConfigError
from cachebus.keys.key import Key
from cachebus.reading.fill import Fill
from cachebus.reading.fill_lease import DatedReply, FillLease
from cachebus.reading.flight import Flight
from cachebus.reading.judge import AsOf
from cachebus.reading.parts import LoadParts
from cachebus.reading.previous import Offered, offered_by_l1, offered_by_l2, settled
from cachebus.reading.request import Failing, Found


class SourceLoad:
    """What one flight asks of its source."""

    __slots__ = ("_began_s", "_fill", "_fill_lease", "_flight", "_node", "_parts", "_took_s")

    def __init__(self, parts: LoadParts, flight: Flight, lease: FillLease) -> None:
        self._parts, self._node = parts, parts.fetch.node
        self._flight, self._fill_lease = flight, lease
        self._fill = Fill(parts.fetch, flight, lease)
        self._began_s = self._took_s = 0.0
        """When the source was asked, and how long it has taken to answer."""

    # -- the four cases -------------------------------------------------------------------------------------------

    async def under_fill_lease(self, dated: DatedReply, over: bytes = b"") -> Found:
        """Load, and offer it to L2, in the place of the version `over` (b"": of any)."""
        # The load may read what a lost guard covered. Callers that come after that guard's time must not join it.
        lost_guards_over_s = self._node.lost_guards_over_s(self._flight.request.key.shard)
        if dated.as_of.at_s < lost_guards_over_s:
            self._flight.fresh.end_at(lost_guards_over_s)
        offered = offered_by_l2(self._parts.fetch, self._flight.request, dated) if self._offers else None
        found = await self._or_fallback(offered)
        if found.is_fallback:
            return found
        kept = await self._fill.under_fill_lease(found, dated, over, None if offered is None else offered.fresh)
        return self._told(kept) if kept is not None else await self._told_of_nothing(found)

    async def guarded(self, dated: DatedReply) -> Found:
        """What a guard covers may change at the source at any moment: who comes when the guard may be over must not
        join."""
        self._flight.fresh.end_at(dated.as_of.at_s + dated.reply.wait_ms / 1000)
        self._node.counters.guarded_loads += 1
        return await self.unkept()

    async def without_l2(self) -> Found:
        """Load, and keep it on this node alone."""
        flight, node = self._flight, self._node
        key = flight.request.key
        as_of, seq = begun_without_l2(node, key)
        offered = offered_by_l1(node, flight.request) if self._offers else None
        flight.fresh.date_from(as_of.at_s)  # what comes now is the source's
        flight.fresh.end_at(as_of.at_s + node.bound_s)  # whatever guard stands, L2 was not asked
        with self._parts.flights.without_l2(key.l1, flight):
            found = await self._or_fallback(offered)
            if found.is_fallback:
                return found
            if offered is not None and not self._fill.holds(found, offered.fresh):
                return await self._told_of_nothing(found)
            return self._told(self._fill.without_l2(found, as_of, seq))

    async def unkept(self) -> Found:
        """Load, or make what can be made instead, for the flight's callers alone."""
        try:
            found = await self._asked(None)
        except Failing as failing:
            found = await self._made_instead(failing)
        return self._told(self._fill.unkept(found))

    async def _told_of_nothing(self, found: Found) -> Found:
        """Load again. The source has said that the old value is still right, but something may have invalidated that
        since it was offered: it is given to nobody. Nobody waits for a refresh, so that one ends here."""
        if self._flight.departure.refreshes:
            return found
        self._flight.fall_back_on(None)
        found = await self._or_fallback(None)
        return found if found.is_fallback else self._told(self._fill.unkept(found))

    # -- the source -----------------------------------------------------------------------------------------------

    @property
    def _offers(self) -> bool:
        """Whether the source is told what the cache still has. What its callers may not be given is not offered."""
        return self._flight.request.takes_previous and not self._flight.departure.must_load

    async def _or_fallback(self, offered: Offered | None) -> Found:
        """What the source gives; where it fails, the key cools down, and what is expired is given if it may be."""
        flight = self._flight
        try:
            try:
                return await self._asked(offered)
            except Failing as failing:
                if flight.over or flight.departure.refreshes or flight.usable_fallback() is not None:
                    raise failing.error from failing.error.__cause__
                return await self._made_instead(failing)
        except ConfigError:  # the program's error, not the source's
            raise
        except Exception:
            self._fill_lease.cool_down(self.begin_cooldown())
            fallback = flight.usable_fallback()
            if fallback is None:
                raise
            return fallback

    async def _asked(self, offered: Offered | None) -> Found:
        """What the source gives; counted and timed."""
        request, counters = self._flight.request, self._node.counters
        key = request.key
        of_type = counters.of(key.family.data_type)
        of_type.loads += 1
        self._began_s = self._node.clock()
        try:
            self._flight.asks_source()
            loaded = await request.load(None if offered is None else offered.previous)
        except Exception as error:
            self._note_failure(error.error if isinstance(error, Failing) else error)
            raise
        finally:
            self._took_s = self._node.clock() - self._began_s
            counters.load_latency.observe(self._took_s)
        self._parts.cooldowns.end(key.l1)
        loaded = settled(loaded, offered, request)
        if offered is not None and loaded.is_not_modified:
            of_type.not_modified += 1
            self._flight.heed(offered.terms.split(offered.tags)[0])
        self._flight.heed(ttl_s=loaded.terms.ttl_s)
        of_type.not_found += loaded.value is None
        return Found(loaded.value, None, loaded)

    async def _made_instead(self, failing: Failing) -> Found:
        """What can be made without the source. It is kept no longer than a source that has failed is left alone, and
        is no fallback."""
        try:
            loaded = await failing.instead()
        except Failing:
            raise failing.error from failing.error.__cause__
        except Exception as error:
            self._note_failure(error)
            raise
        self._flight.heed(ttl_s=self._flight.request.rules.fail_safe_throttle_s)
        return Found(loaded.value, None, loaded._replace(makeshift=True))

    def begin_cooldown(self) -> float:
        """The source has failed: on this node the key cools down. For how long, in seconds."""
        request, fallback = self._flight.request, self._flight.fallback
        version = self._flight.departure.refreshes if fallback is None else fallback.version
        return self._parts.cooldowns.begin(request.key.l1, request.rules.fail_safe_throttle_s, version)

    def _note_failure(self, error: BaseException) -> None:
        """Count and log that a source has failed: by its class alone, since a driver's text may hold a password."""
        data_type = self._flight.request.key.family.data_type
        self._node.counters.of(data_type).load_errors += 1
        if not self._flight.is_told:
            logger.warning("loading {} failed: {}", data_type, type(error).__name__)
        if self._node.hooks.load_failed:
            took_s = self._node.clock() - self._began_s
            self._node.hooks.tell("load_failed", self._flight.request.key.l1, took_s, type(error).__name__)

    def _told(self, found: Found) -> Found:
        """What was loaded is where it may be: tell it whoever wants to know."""
        if self._node.hooks.loaded and found.loaded is not None:
            request, is_refresh = self._flight.request, bool(self._flight.departure.refreshes)
            is_there, is_kept = found.value is not None, not found.serialization_error
            # What is not kept may have been taken away in L2: that was stored in its place.
            is_stored = self._fill_lease.stored and is_kept and (is_there or bool(request.rules.negative_ttl_s))
            facts = self._took_s, is_there, found.loaded.source, is_refresh, is_stored
            self._node.hooks.tell("loaded", request.key.l1, *facts)
        return found


def begun_without_l2(node: Node, key: Key) -> tuple[AsOf, int]:
    """As of when a load is that begins now and of which L2 will hear nothing; and the seq that it is newer than.

    The source shows by now whatever this node has heard of, behind a gap too, and whatever it holds of the key. If the
    load went by `applied` alone, it would be kept out by what it is newer than.
    """
    shard = node.shards[key.shard]
    as_of, held = AsOf(shard.reserve(), node.clock()), node.trusted(key)
    return as_of, shard.highest_seq if held is None else max(shard.highest_seq, held.seq)
