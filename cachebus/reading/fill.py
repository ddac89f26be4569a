"""What becomes of a value that was loaded.

1. `under_fill_lease`: L2 is offered it. Only what L2 accepts enters L1 for longer than the staleness bound D.
2. `without_l2`: L2 is out of reach. L1 alone keeps it, until D after the load began.
3. `unkept`: no level may keep it; its callers have it.

In each case the callers are given the value as every node will decode it.
"""

from __future__ import annotations

from cachebus.base.lifetimes import TAGS_MAX
from cachebus.base.log import logger
from cachebus.core.ports import FillLeaseReply
from cachebus.errors import L2Unavailable, NotSerializable
from cachebus.reading.fetch import Fetcher
from cachebus.reading.fill_lease import DatedReply, FillLease
from cachebus.reading.flight import Flight
from cachebus.reading.freshness import Freshness
from cachebus.reading.judge import AsOf
from cachebus.reading.request import Found, Loaded
from cachebus.wire.packing import Given, copier, is_left_alone, keep_ms, pack
from cachebus.wire.record import FLAG_MAKESHIFT, FLAG_NOT_FOUND, Record


class Fill:
    """What one flight has loaded, put where it may be kept."""

    __slots__ = ("_fetch", "_fill_lease", "_flight", "_key", "_node", "_rules")

    def __init__(self, fetcher: Fetcher, flight: Flight, lease: FillLease) -> None:
        self._fetch, self._node = fetcher, fetcher.node
        self._flight, self._fill_lease = flight, lease
        self._key, self._rules = flight.request.key, flight.request.rules

    async def under_fill_lease(
        self, found: Found, dated: DatedReply, over: bytes = b"", offered: Freshness | None = None
    ) -> Found | None:
        """Offer L2 what was loaded under the fill lease that was granted by this reply. `over`: the version that it
        may replace, b"" for any. `offered`: of what the source was told.

        None where it is the old value, of which the source says that it is still right, and which something may have
        invalidated since."""
        granted, as_of = dated
        record, found = self._packed(found)
        if record is None:
            await self._take_away(granted, as_of, over)
            return None if _is_not_modified(found) else found
        if self._node.is_blocked(self._key, record.tags):
            self._take_former_away(granted.seq, granted.epoch, as_of)
            # It may have been read before an invalidation that L2 does not know of yet.
            return None if _is_not_modified(found) else found
        kept_ms = keep_ms(record, self._rules)
        if is_left_alone(granted.record, self._rules):
            return self._kept_here(found, record, granted, as_of)
        record.set_position(granted.epoch, granted.seq, created_ms=self._read_ms(granted.epoch, as_of))
        try:
            async with self._flight.room(len(record.payload)):
                change = await self._fill_lease.store(record, kept_ms, over)
        except L2Unavailable as error:
            self._fetch.refusals.count(error, "fills", self._key.family.data_type)
            self._end_former_fallback(granted.seq, granted.epoch, as_of)
            if offered is not None and not self.holds(found, offered):
                return None
            self._admit(found, record, as_of, fenced=False)
            return _of_first(found)
        if not change.done:
            self._node.counters.fills_rejected += 1
            self._take_former_away(granted.seq, granted.epoch, as_of)
            logger.debug("what was loaded of {} was replaced meanwhile, and is not kept", self._key.family.data_type)
            return None if _is_not_modified(found) else _of_first(found)
        self._node.counters.fills += 1
        record.set_position(granted.epoch, granted.seq, expires_ms=change.expires_ms)
        self._admit(found, record, as_of, fenced=True)
        return found

    def _kept_here(self, found: Found, record: Record, granted: FillLeaseReply, as_of: AsOf) -> Found:
        """What lies in L2 is encrypted, and this node has no keys. It stays there, for those who have: in its place
        everybody could read what was loaded, and they would load again."""
        record.set_position(granted.epoch, granted.seq, created_ms=self._read_ms(granted.epoch, as_of))
        self._end_former_fallback(granted.seq, granted.epoch, as_of)
        self._admit(found, record, as_of, fenced=False)
        return _of_first(found)

    def holds(self, found: Found, offered: Freshness) -> bool:
        """Whether what was loaded may be given by what this node knows: the old value only while nothing that it has
        heard of has invalidated that."""
        return not _is_not_modified(found) or offered.holds(self._node.clock())

    def without_l2(self, found: Found, as_of: AsOf, seq: int) -> Found:
        """Keep what was loaded in L1 alone, until D after the load began. `seq`: what it is newer than, at least."""
        record, found = self._packed(found)
        epoch = as_of.reservation.epoch
        if record is None:
            self._leave_nothing(seq, epoch, as_of)
            return found
        self._end_former_fallback(seq, epoch, as_of)
        record.set_position(epoch, seq)
        self._admit(found, record, as_of, fenced=False)
        return found

    def unkept(self, found: Found) -> Found:
        """What was loaded, for its callers alone."""
        return found if found.value is None else self._packed(found)[1]

    async def _take_away(self, granted: FillLeaseReply, as_of: AsOf, over: bytes) -> None:
        """The source has answered, and its answer is not kept. What it gave before goes from L2 and L1."""
        if granted.record is not None:
            gone = Record(FLAG_NOT_FOUND, 0, b"", created_ms=1, expires_ms=1, epoch=granted.epoch, seq=granted.seq)
            try:
                await self._fill_lease.store(gone, 1, over)
            except L2Unavailable as error:
                self._fetch.refusals.count(error, "fills", self._key.family.data_type)
        self._leave_nothing(granted.seq, granted.epoch, as_of)

    def _leave_nothing(self, seq: int, epoch: bytes, as_of: AsOf) -> None:
        """The source has answered, and its answer is kept nowhere, as it says or as it can't be. What it gave before
        goes from L1, however that was loaded."""
        self._node.take_away(self._key, seq, of_any_load=True)
        self._note_answer(epoch, as_of)

    def _take_former_away(self, seq: int, epoch: bytes, as_of: AsOf) -> None:
        """The source has answered, and L2 refuses its answer. What it gave before goes from L1."""
        self._node.take_away(self._key, seq)
        self._note_answer(epoch, as_of)

    def _end_former_fallback(self, seq: int, epoch: bytes, as_of: AsOf) -> None:
        """The source has answered, and L2 does not know. What it gave before is served until it expires, and is no
        fallback after that."""
        self._node.end_fallback(self._key, seq)
        self._note_answer(epoch, as_of)

    def _note_answer(self, epoch: bytes, as_of: AsOf) -> None:
        if self._rules.fail_safe_s:
            self._fetch.superseded.note(self._key.l1, self._read_ms(epoch, as_of))

    def _read_ms(self, epoch: bytes, as_of: AsOf) -> int:
        """When the load began at the earliest, on the L2 server's clock: the source may have answered as of then. 0 in
        an epoch that this node has yet to enter, as the server may be another one."""
        index = self._key.shard
        known = epoch == self._node.shards[index].epoch
        return int(self._node.server_clocks[index].shown_s(as_of.at_s) * 1000) if known else 0

    def _packed(self, found: Found) -> tuple[Record | None, Found]:
        """The record, and the value as every node will decode it. There is no record

        1. of a value whose encoding raises anything: its callers have it as it is, and that is counted and logged;
        2. of "not found", where its type has no `negative_ttl_s`;
        3. of a value that is not to be kept, as its source says.
        """
        flight, loaded = self._flight, found.loaded or Loaded(found.value)
        flight.fix_wishes()
        if found.value is None and not self._rules.negative_ttl_s:
            return None, found
        try:
            if loaded.refused is not None:
                raise NotSerializable(f"its serializer raised {type(loaded.refused).__name__}")
            server_now_s = self._node.server_now_s(self._key.shard)
            record, value = pack(found.value, self._rules, server_now_s, self._said_of(loaded))
        except Exception as error:  # noqa: BLE001 (a value's own methods may raise anything)
            if not loaded.is_kept:
                return None, found
            data_type = self._key.family.data_type
            self._node.counters.of(data_type).serialization_errors += 1
            said = getattr(error, "in_log", "") or str(error)
            if logger.once("can't be cached", data_type, said):
                logger.error(
                    "a loaded {} can't be cached, and is loaded at each read: {}: {}",
                    data_type,
                    type(error).__name__,
                    said,
                )
            return None, found._replace(serialization_error=True)
        found = found._replace(value=value, copy=copier(record, value, self._rules))
        return record if loaded.is_kept else None, found

    def _said_of(self, loaded: Loaded) -> Given:
        """What the record says beside its value; `NotSerializable` where it has no room for all tags."""
        flight = self._flight
        flags = FLAG_NOT_FOUND if loaded.value is None else FLAG_MAKESHIFT if loaded.makeshift else 0
        tags, terms = flight.tags, loaded.terms
        if flight.request.takes_previous and not flags:
            terms = terms._replace(ttl_s=flight.ttl_s)  # what is "not modified" lives as long again
        late = [tag for tag in loaded.late_tags if tag not in tags]
        if late or terms.late_tags:
            tags, terms = [*tags, *late], terms._replace(late_tags=len(late))
        if len(tags) > TAGS_MAX:
            raise NotSerializable(f"its loader and its callers give it {len(tags)} tags, and a record takes {TAGS_MAX}")
        return Given(flight.ttl_s, tags, flags, terms)

    def _admit(self, found: Found, record: Record, as_of: AsOf, *, fenced: bool) -> None:
        if self._flight.request.admits:
            self._fetch.judge.admit(self._key, found.value, record, as_of, fenced=fenced)


def _is_not_modified(found: Found) -> bool:
    return found.loaded is not None and found.loaded.is_not_modified


def _of_first(found: Found) -> Found:
    """What L2 did not keep: where its tags came with it, nobody could ask for guards of these before."""
    has_late_tags = found.loaded is not None and bool(found.loaded.late_tags)
    return found._replace(is_of_first=has_late_tags)
