"""Loads for which nobody waits.

1. `refresh`: ahead of expiry, a value is loaded again over exactly the version that is there.
2. `look`: while its source rests here, L2 is looked into for what another node has loaded since.

Neither is tried again at once (`pauses`): that says nothing against a source, unlike a rest.
"""

from __future__ import annotations

from cachebus.core.ports import LeaseOutcome, Stale
from cachebus.errors import L2Unavailable
from cachebus.reading.fetch import MISSING
from cachebus.reading.flight import Departure, Flight, Fly
from cachebus.reading.freshness import Freshness
from cachebus.reading.lease import Lease, LeaseAnswer
from cachebus.reading.load import SourceLoad
from cachebus.reading.look_up import look_up
from cachebus.reading.parts import LoadParts
from cachebus.reading.request import Found, Request
from cachebus.reading.resting import Rest, Rests

REFRESH = "\x1frefresh"
LOOK = "\x1flook"
REFRESH_AGAIN_S = LOOK_AGAIN_S = 1.0
"""About so long nobody on this node tries to refresh what another node refreshes just now, or looks into L2 again for
what another node may have loaded from a source that rests here."""
NOTHING = Found(MISSING, None)


class Background:
    """What one cache does of itself for keys that are read."""

    def __init__(self, parts: LoadParts) -> None:
        self._parts = parts
        self._fetch, self._node = parts.fetch, parts.fetch.node
        self.pauses = Rests(parts.fetch.clock)
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
        pauses = self._parts.rests.of(request.key.l1, version), self.pauses.of(name, version)
        if self._parts.enabled and Rest.RESTS not in pauses:
            self._begin(name, request, self._refreshed, version)

    async def _refreshed(self, flight: Flight) -> Found:
        request, version = flight.request, flight.departure.refreshes
        name, rest_s = request.key.l1 + REFRESH, request.rules.fail_safe_throttle_s
        pause_s = min(REFRESH_AGAIN_S, rest_s)
        try:
            # Another node's refresh, if there was one, enters L1 by this.
            there = await self._fetch.found(request.key, None, admit=request.admits)
            if there.value is not MISSING and there.version != version:
                return Found(there.value, "l2")
            with Lease(self._fetch, request, self._parts.lease_ms) as lease:
                answer = await lease.ask(flight.tags, refresh=True, stale=Stale.OWN)
                if answer.outcome is not LeaseOutcome.GRANTED:  # somebody else is at it, or it is to be left alone
                    if answer.outcome is LeaseOutcome.RESTING:
                        pause_s = min(answer.reply.wait_ms / 1000, rest_s)
                    return NOTHING
                pause_s = rest_s
                try:
                    return await self._loaded_again(flight, lease, answer)
                finally:
                    if lease.stored:
                        pause_s = 0.0
        finally:
            if pause_s:
                self.pauses.begin(name, pause_s, version)

    async def _loaded_again(self, flight: Flight, lease: Lease, answer: LeaseAnswer) -> Found:
        """Load under the lease, over the version that is to be refreshed."""
        request = flight.request
        left_s, tags = lease.left_and_tags(answer)
        if not flight.has_room_for(tags):
            return NOTHING
        flight.add(request._replace(tags=tags, ttl_s=None))  # who asked has got what carries them
        self._node.counters.of(request.key.family.data_type).refreshes += 1
        # Where L2 has lost the record, it is stored anew.
        over = flight.departure.refreshes if answer.reply.record is not None else b""
        try:
            return await SourceLoad(self._parts, flight, lease).under_lease(answer, over)
        finally:
            if (
                not lease.stored
            ):  # other nodes need not try; but what expires meanwhile is loaded, as nothing has failed
                lease.rest(min(request.rules.fail_safe_throttle_s, left_s))

    # -- while a source rests -------------------------------------------------------------------------------------

    def look(self, request: Request) -> None:
        """While its source rests, see now and then whether another node has loaded it since."""
        name = request.key.l1 + LOOK
        if self.pauses.of(name, LOOK.encode()) is not Rest.RESTS:
            self.pauses.begin(name, LOOK_AGAIN_S, LOOK.encode())
            self._begin(name, request, self._looked)

    async def _looked(self, flight: Flight) -> Found:
        key = flight.request.key
        seq = self._node.shards[key.shard].applied
        try:
            if await self._fetch.store.get(key) is None:
                # Not even what L2 keeps for when the source fails: another node was told that it is gone.
                self._parts.rests.end(key.l1)
                self._node.take_away(key, seq)
                return NOTHING
            return await look_up(self._parts, flight.request, self.refresh)
        except L2Unavailable:
            self._node.counters.l2_errors += 1
            return NOTHING
