"""Loads for which nobody waits.

1. `refresh`: ahead of expiry, a value is loaded again over exactly the version that is there.
2. `check_l2`: while its source cools down here, L2 is checked for what another node has loaded since.

Neither is tried again at once (`pauses`): that says nothing against a source, unlike a cool-down.
"""

from __future__ import annotations

from cachebus.core.ports import FillLeaseOutcome
from cachebus.core.requests import FallbackKind
from cachebus.errors import L2Unavailable
from cachebus.reading.cooldown import Cooldown
from cachebus.reading.fetch import record_of
from cachebus.reading.fill_lease import DatedReply, FillLease
from cachebus.reading.flight import Departure, Flight, Fly
from cachebus.reading.freshness import Freshness
from cachebus.reading.judge import MISSING
from cachebus.reading.load import SourceLoad
from cachebus.reading.look_up import look_up
from cachebus.reading.parts import LoadParts
from cachebus.reading.pauses import Pauses
from cachebus.reading.request import Found, Request

REFRESH = "\x1frefresh"
CHECK = "\x1fcheck"
REFRESH_AGAIN_S = CHECK_AGAIN_S = 1.0
"""About so long nobody on this node tries to refresh what another node refreshes just now, or checks L2 again for
what another node may have loaded from a source that cools down here."""
NOTHING = Found(MISSING, None)


class Background:
    """What one cache does of itself for keys that are read."""

    def __init__(self, parts: LoadParts) -> None:
        self._parts = parts
        self._fetch, self._node = parts.fetch, parts.fetch.node
        self.pauses = Pauses(parts.fetch.clock)
        """What is not tried again at once."""

    def _begin(self, name: str, request: Request, fly: Fly, refreshes: bytes = b"") -> None:
        """Start a flight for which nobody waits, unless there is one of this name."""
        if self._parts.flights.find(name) is None:
            fresh = Freshness.of_a_get(self._node.shards[request.key.shard], request, self._fetch.clock())
            self._parts.flights.begin(name, Departure(request, fresh, refreshes=refreshes), fly).run_on()

    # -- ahead of expiry ------------------------------------------------------------------------------------------

    def refresh(self, request: Request, version: bytes) -> None:
        """Load again, over exactly the version that is there; one node does, all serve on. What has brought nothing is
        not tried again at once."""
        name = request.key.l1 + REFRESH
        cooldown = self._parts.cooldowns.of(request.key.l1, version)
        if self._parts.enabled and cooldown is not Cooldown.ACTIVE and not self.pauses.has(name, version):
            self._begin(name, request, self._refreshed, version)

    async def _refreshed(self, flight: Flight) -> Found:
        request, version = flight.request, flight.departure.refreshes
        name, cooldown_s = request.key.l1 + REFRESH, request.rules.fail_safe_throttle_s
        pause_s = min(REFRESH_AGAIN_S, cooldown_s)
        try:
            # Another node's refresh, if there was one, enters L1 by this.
            there = await self._fetch.read_one(request.key, None, admit=request.admits)
            record = record_of(there)
            if record is not None and record.version != version:
                return Found(there[0], "l2")
            with FillLease(self._fetch, request, self._parts.lease_ms, self._fetch.budget()) as lease:
                dated = await lease.ask(flight.tags, refresh=True, fallback=FallbackKind.OWN)
                if dated.outcome is not FillLeaseOutcome.GRANTED:  # somebody else is at it, or it is to be left alone
                    if dated.outcome is FillLeaseOutcome.COOLING_DOWN:
                        pause_s = min(dated.reply.wait_ms / 1000, cooldown_s)
                    return NOTHING
                pause_s = cooldown_s
                try:
                    return await self._loaded_again(flight, lease, dated)
                finally:
                    if lease.stored:
                        pause_s = 0.0
        finally:
            if pause_s:
                self.pauses.begin(name, pause_s, version)

    async def _loaded_again(self, flight: Flight, lease: FillLease, dated: DatedReply) -> Found:
        """Load under the fill lease, over the version that is to be refreshed."""
        request = flight.request
        left_s, tags = lease.left_and_callers_tags(dated)
        if not flight.has_room_for(tags):
            return NOTHING
        flight.heed(tags)  # who asked has got what carries them
        self._node.counters.of(request.key.family.data_type).refreshes += 1
        # Where L2 has lost the record, or has one of another version of the policy, it is stored anew.
        over = flight.departure.refreshes if lease.is_readable(dated) else b""
        try:
            return await SourceLoad(self._parts, flight, lease).under_fill_lease(dated, over)
        finally:
            if not lease.stored:
                # Other nodes need not try; but what expires meanwhile is loaded, as nothing has failed.
                lease.cool_down(min(request.rules.fail_safe_throttle_s, left_s))

    # -- while a source cools down -------------------------------------------------------------------------------------

    def check_l2(self, request: Request) -> None:
        """While its source cools down, see now and then whether another node has loaded it since."""
        name = request.key.l1 + CHECK
        if not self.pauses.has(name):
            self.pauses.begin(name, CHECK_AGAIN_S)
            self._begin(name, request, self._checked)

    async def _checked(self, flight: Flight) -> Found:
        key = flight.request.key
        seq = self._node.shards[key.shard].applied
        try:
            if await self._fetch.store.get(key) is None:
                # Not even what L2 keeps for when the source fails: another node was told that it is gone.
                self._parts.cooldowns.end(key.l1)
                self._node.take_away(key, seq)
                return NOTHING
            return await look_up(self._parts, flight.request, self.refresh)
        except L2Unavailable as error:
            self._fetch.refusals.count(error, "reads", key.family.data_type)
            return NOTHING
