"""What becomes of a value that was loaded.

1. `under_lease`: L2 is offered it. Only what L2 accepts enters L1 for longer than the staleness bound D.
2. `without_l2`: L2 is out of reach. L1 alone keeps it, until D after the load began.
3. `unkept`: no level may keep it; its callers have it.

In each case the callers are given the value as every node will decode it.
"""

from __future__ import annotations

from cachebus.base.log import logger
from cachebus.core.ports import LeaseReply
from cachebus.errors import L2Unavailable, NotSerializable
from cachebus.reading.fetch import AsOf, Fetcher
from cachebus.reading.flight import Flight
from cachebus.reading.lease import Lease, LeaseAnswer
from cachebus.reading.request import Found
from cachebus.wire.packing import copier, keep_ms, pack
from cachebus.wire.record import FLAG_NOT_FOUND, Record


class Fill:
    """What one flight has loaded, put where it may be kept."""

    __slots__ = ("_clock", "_fetch", "_flight", "_key", "_lease", "_node", "_rules")

    def __init__(self, fetcher: Fetcher, flight: Flight, lease: Lease) -> None:
        self._fetch, self._node, self._clock = fetcher, fetcher.node, fetcher.clock
        self._flight, self._lease = flight, lease
        self._key, self._rules = flight.request.key, flight.request.rules

    async def under_lease(self, found: Found, answer: LeaseAnswer, over: bytes = b"") -> Found:
        """Offer L2 what was loaded under the lease that was granted by this answer. `over`: the version that it may
        replace, b"" for any."""
        granted, as_of = answer
        record, found = self._packed(found)
        if record is None:
            await self._take_away(granted, as_of, over)
            return found
        if self._node.blocked is not None and self._node.blocked.covers(self._key, record.tags):
            self._take_former_away(granted.seq, granted.epoch, as_of)
            return found  # it may have been read before an invalidation that L2 does not know of yet
        kept_ms = keep_ms(record, self._rules)
        record.set_position(granted.epoch, granted.seq, created_ms=self._read_ms(granted.epoch, as_of))
        try:
            change = await self._lease.store(record, kept_ms, over)
        except L2Unavailable:
            self._node.counters.l2_errors += 1
            self._end_former_fallback(granted.seq, granted.epoch, as_of)
            self._admit(found, record, as_of, fenced=False)
            return found
        if not change.stored:
            self._node.counters.fills_rejected += 1
            self._take_former_away(granted.seq, granted.epoch, as_of)
            logger.debug("what was loaded of {} was replaced meanwhile, and is not kept", self._key.family.data_type)
            return found
        self._node.counters.fills += 1
        record.set_position(granted.epoch, granted.seq, expires_ms=change.expires_ms)
        self._admit(found, record, as_of, fenced=True)
        return found

    def without_l2(self, found: Found, as_of: AsOf, seq: int) -> Found:
        """Keep what was loaded in L1 alone, until D after the load began. `seq`: what it is newer than, at least."""
        record, found = self._packed(found)
        epoch = as_of.reservation.epoch
        self._end_former_fallback(seq, epoch, as_of)
        if record is not None:
            record.set_position(epoch, seq)
            self._admit(found, record, as_of, fenced=False)
        return found

    def unkept(self, found: Found) -> Found:
        """What was loaded, for its callers alone."""
        return found if found.value is None else self._packed(found)[1]

    async def _take_away(self, granted: LeaseReply, as_of: AsOf, over: bytes) -> None:
        """The source has answered, and its answer is not kept: what it gave before serves no more."""
        if granted.record is not None:
            gone = Record(FLAG_NOT_FOUND, 0, b"", created_ms=1, expires_ms=1, epoch=granted.epoch, seq=granted.seq)
            try:
                await self._lease.store(gone, 1, over)
            except L2Unavailable:
                self._node.counters.l2_errors += 1
        self._take_former_away(granted.seq, granted.epoch, as_of)

    def _take_former_away(self, seq: int, epoch: bytes, as_of: AsOf) -> None:
        """The source has answered, and its answer is not kept: what it gave before is served no more."""
        self._node.take_away(self._key, seq)
        self._note_answer(epoch, as_of)

    def _end_former_fallback(self, seq: int, epoch: bytes, as_of: AsOf) -> None:
        """The source has answered, and L2 does not know: what it gave before is served until it expires, not longer."""
        self._node.end_fallback(self._key, seq)
        self._note_answer(epoch, as_of)

    def _note_answer(self, epoch: bytes, as_of: AsOf) -> None:
        if self._rules.fail_safe_s:
            self._fetch.superseded.note(self._key.l1, self._read_ms(epoch, as_of))

    def _read_ms(self, epoch: bytes, as_of: AsOf) -> int:
        """When the load began on the L2 server's clock, at the earliest: the source may have answered as of then. In
        an epoch that this node has yet to enter the server may be another one: 0."""
        index = self._key.shard
        known = epoch == self._node.shards[index].epoch
        return int(self._node.server_clocks[index].shown_s(as_of.at_s) * 1000) if known else 0

    def _packed(self, found: Found) -> tuple[Record | None, Found]:
        """The record, and the value as every node will decode it.

        1. What can't be cached, whatever is raised by encoding it, is given to its callers as it is, counted and
           logged. There is no record.
        2. Of "not found" without a TTL there is none either.
        """
        flight, loaded = self._flight, found.loaded
        flight.make()
        if found.value is None and not self._rules.negative_ttl_s:
            return None, found
        try:
            if loaded is not None and loaded.refused is not None:
                raise NotSerializable(f"its serializer raised {type(loaded.refused).__name__}")
            record, value = pack(
                found.value,
                self._rules,
                self._clock() + self._node.server_clocks[self._key.shard].offset_s,
                ttl_s=flight.ttl_s,
                tags=flight.tags,
                not_found=found.value is None,
                makeshift=loaded is not None and loaded.makeshift,
            )
        except Exception as error:  # noqa: BLE001 (a value's own methods may raise anything)
            data_type = self._key.family.data_type
            self._node.counters.of(data_type).serialization_errors += 1
            if logger.once("can't be cached", data_type, str(error)):
                logger.error(
                    "a loaded {} can't be cached, and is loaded at each read: {}: {}",
                    data_type,
                    type(error).__name__,
                    error,
                )
            return None, found._replace(serialization_error=True)
        return record, found._replace(value=value, copy=copier(record, value, self._rules))

    def _admit(self, found: Found, record: Record, as_of: AsOf, *, fenced: bool) -> None:
        if self._flight.request.admits:
            self._fetch.admit(self._key, found.value, record, as_of, fenced=fenced)
