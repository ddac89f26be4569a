"""Loads for which nobody waits: refreshes ahead of expiry, and looks into L2 for what another node has loaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cachebus.base.clock import Clock
from cachebus.core.ports import Leased, Stale
from cachebus.errors import L2Unavailable
from cachebus.reading.fetch import MISSING, Fetcher
from cachebus.reading.fill import Filler
from cachebus.reading.flight import Flight, Fly
from cachebus.reading.request import Found, Request
from cachebus.reading.resting import Rest, Rests

REFRESH = "\x1frefresh"
LOOK = "\x1flook"
REFRESH_AGAIN_S = LOOK_AGAIN_S = 1.0
"""About so long nobody on this node tries to refresh what another node refreshes just now, or looks into L2 again for
what another node may have loaded from a source that rests here."""
NOTHING = Found(MISSING, None)

Begin = Callable[[str, Request, Fly], None]
"""Start a flight of this name in the background, unless there is one."""
Load = Callable[[Flight, Filler, bytes], Awaitable[Found]]
"""Load under a lease, and store it over this version, or any."""


class Background:
    """What one cache does of itself for keys that are read."""

    def __init__(
        self, fetcher: Fetcher, rests: Rests, clock: Clock, begin: Begin, load: Load, *, lease_ms: int, enabled: bool
    ) -> None:
        self._fetch, self._node = fetcher, fetcher.node
        self._rests, self.pauses = rests, Rests(clock)
        """Sources that have failed; and what is not tried again at once, which says nothing against a source."""
        self._begin, self._load = begin, load
        self._lease_ms = lease_ms
        self._enabled = enabled

    async def asked(self, request: Request) -> Found:
        """What L2 has, by a plain get where this node may judge it; past its soft expiry it is loaded meanwhile."""
        seen = await self._fetch.found(request.key, request.after, admit=request.use_memory)
        if seen.value is not MISSING:
            self._rests.saw(request.key.l1, seen.version)
        if seen.soft:
            self.refresh(request, seen.version)
        return Found(seen.value, "l2", copy=seen.copy)

    def refresh(self, request: Request, version: bytes) -> None:
        """Load again, over exactly the version that is there; one node does, all serve on. What has brought nothing is
        not tried again at once."""
        name = request.key.l1 + REFRESH
        pauses = self._rests.of(request.key.l1, version), self.pauses.of(name, version)
        if self._enabled and Rest.RESTS not in pauses:
            self._begin(name, request, lambda flight: self._refreshed(flight, version))

    async def _refreshed(self, flight: Flight, version: bytes) -> Found:
        request = flight.request
        name, rest_s = request.key.l1 + REFRESH, request.rules.fail_safe_throttle_s
        pause_s = min(REFRESH_AGAIN_S, rest_s)
        try:
            # Another node's refresh, if there was one, enters L1 by this.
            there = await self._fetch.found(request.key, None, admit=request.admits)
            if there.value is not MISSING and there.version != version:
                return Found(there.value, "l2")
            with Filler(self._fetch, request, self._lease_ms) as filler:
                reply = await filler.lease(flight.tags, refresh=True, stale=Stale.OWN)
                if reply.outcome is not Leased.GRANTED:  # somebody else is at it, or it is to be left alone
                    if reply.outcome is Leased.RESTING:
                        pause_s = min(reply.wait_ms / 1000, rest_s)
                    return NOTHING
                pause_s = rest_s
                left_s, tags = filler.kept(reply.record)
                if not flight.has_room_for(tags):
                    return NOTHING
                flight.add(request._replace(tags=tags, ttl_s=None))  # who asked has got what carries them
                self._node.counters.of(request.key.family.data_type).refreshes += 1
                flight.refreshes = version
                try:
                    # Where L2 has lost the record, it is stored anew.
                    return await self._load(flight, filler, version if reply.record is not None else b"")
                finally:
                    if filler.stored:
                        pause_s = 0.0
                    else:  # other nodes need not try; but what expires meanwhile is loaded, as nothing has failed
                        filler.rest(min(rest_s, left_s))
        finally:
            if pause_s:
                self.pauses.begin(name, pause_s, version)

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
                self._rests.end(key.l1)
                self._node.take_away(key, seq)
                return NOTHING
            return await self.asked(flight.request)
        except L2Unavailable:
            self._node.counters.l2_errors += 1
            return NOTHING
