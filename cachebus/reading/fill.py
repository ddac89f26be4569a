"""One fill: the lease held while a load runs, and what was loaded offered to L2, then to L1."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from math import inf
from typing import Self

from loguru import logger

from cachebus.core.ports import Change, Leased, LeaseReply, Stale
from cachebus.core.shard import Reservation
from cachebus.errors import L2Unavailable, NotSerializable
from cachebus.reading.fetch import MISSING, Fetcher
from cachebus.reading.flight import Flight
from cachebus.reading.freshness import Fallback, Freshness
from cachebus.reading.request import Found, Request
from cachebus.reading.source import GIVE_UP_S
from cachebus.wire.packing import copier, keep_ms, pack
from cachebus.wire.record import NOT_FOUND, Record

_tokens = itertools.count()


class Filler:
    """One fill: holds its lease while the load runs, and offers what was loaded to L2, then to L1. To be entered:
    whatever happens inside, a lease that is still held is given back."""

    def __init__(self, fetcher: Fetcher, request: Request, lease_ms: int) -> None:
        self.key, self.rules = request.key, request.rules
        self._admits = request.admits
        self._fetch, self._node, self._store = fetcher, fetcher.node, fetcher.store
        self._clock = fetcher.clock
        self._token = f"{self._node.id}-{next(_tokens):x}"
        self._timer: asyncio.TimerHandle | None = None
        self._lease_ms = lease_ms
        self.budget = fetcher.budget()
        """What is left of what the call may wait for L2."""
        self._granted: LeaseReply | None = None
        self._reservation: Reservation
        self._began_s = 0.0
        self._seq = 0
        # A load that is given up may take a little longer, to put its things in order.
        self._lasts_s = request.patience_s + request.sources * GIVE_UP_S
        self._held = False
        self.stored = False
        """Whether L2 has taken what was loaded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def began_s(self) -> float:
        """When the lease was asked for, or the load without one began."""
        return self._began_s

    def begin_without_l2(self) -> None:
        """Begin a load that L2 will hear nothing of."""
        view = self._node.shards[self.key.shard]
        self._reservation = view.reserve()
        self._began_s = self._clock()
        # The source shows by now whatever this node has heard of, behind a gap too, and whatever it holds of the key:
        # called by `applied` alone, the load would be kept out by what it is newer than.
        held = self._node.trusted(self.key)
        self._seq = view.head if held is None else max(view.head, held.seq)

    # -- the lease ------------------------------------------------------------------------------------------------

    async def lease(self, tags: Sequence[str], *, refresh: bool = False, stale: Stale = Stale.NONE) -> LeaseReply:
        """Ask for the lease once; a granted one is extended from now on. `stale`: what the caller could serve instead,
        while the source is left alone."""
        self.begin_without_l2()
        index = self.key.shard
        try:
            reply = await self.budget.spent_on(
                self._store.lease(
                    self.key,
                    self._node.caller(index),
                    self._token,
                    self._lease_ms,
                    refresh=refresh,
                    stale=stale,
                    tags=tags,
                )
            )
        except BaseException:
            self._store.release(self.key, self._token)  # it may have been granted, and nobody would know
            raise
        self._fetch.notice(index, reply.epoch)
        if reply.outcome is Leased.GRANTED:
            self._granted, self._held = reply, True
            self._stop_extending()
            self._extend_later(self._clock() + self._lasts_s)
        return reply

    def _extend_later(self, until_s: float) -> None:
        """For no longer than a load may take: a loader that heeds no limit holds nobody up for longer."""

        def extend() -> None:
            if self._clock() < until_s:
                self._store.extend(self.key, self._token, self._lease_ms)
                self._extend_later(until_s)

        self._timer = asyncio.get_running_loop().call_later(self._lease_ms / 3000, extend)

    def _stop_extending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def release(self) -> None:
        """Give the lease back, if it is held; awaits nothing, since a cancelled load may do nothing more."""
        self._stop_extending()
        if self._held:
            self._held = False
            self._store.release(self.key, self._token)

    def rest(self, rest_s: float) -> None:
        """Give the lease back so that who has something to serve leaves the source alone for so long."""
        self._stop_extending()
        if self._held and rest_s > 0:
            self._held = False
            self._store.rest(self.key, self._token, max(1, int(rest_s * 1000)))

    # -- what L2 has ----------------------------------------------------------------------------------------------

    def taken(self, data: bytes | None) -> Found | None:
        """A record that the lease script found valid, as a read's result; None where it can't be decoded."""
        record = None if data is None else self._fetch.decoded(self.key, data)
        if record is None:
            return None
        value = self._fetch.taken(self.key, record, self._reservation if self._admits else None, self._began_s)
        return None if value is MISSING else Found(value, "l2", copy=copier(record, value, self.rules))

    def kept(self, data: bytes | None) -> tuple[float, Sequence[str]]:
        """How long a record has until its hard expiry, in seconds, and its tags."""
        record = None if data is None else self._fetch.decoded(self.key, data)
        if record is None:
            return 0.0, ()
        now_s = self._clock() + self._node.server_clocks[self.key.shard].offset_s
        return record.expires_ms / 1000 - now_s if record.expires_ms else inf, record.tags

    def fallback(self, data: bytes | None) -> Fallback | None:
        """An expired record, which L2 has just validated, where fail-safe allows it."""
        record = self._fetch.decoded(self.key, data) if data is not None and self.rules.fail_safe_s else None
        if record is None or not record.may_be_fallback or self._node.in_doubt(self.key.shard, record):
            return None
        if self._fetch.superseded.covers(self.key.l1, record.created_ms):
            return None
        value = self._fetch.taken(self.key, record, None, self._began_s)
        if value is MISSING:
            return None
        fresh = Freshness(self._node.shards[self.key.shard], self.key, record.tags, self._began_s)
        return Fallback(Found(value, "l2", stale=True, copy=copier(record, value, self.rules)), fresh, record.version)

    # -- what was loaded ------------------------------------------------------------------------------------------

    async def fill(self, found: Found, flight: Flight, over: bytes = b"") -> Found:
        """Offer what was loaded to L2; only what L2 accepted enters L1 for longer than D. `over`: the version that it
        may replace, b"" for any."""
        granted = self._granted
        if granted is None:
            raise RuntimeError("a fill without a lease")
        record, found = self._packed(found, flight)
        if record is None:
            await self._take_away(granted, over)
            return found
        if self._node.blocked is not None and self._node.blocked.covers(self.key, record.tags):
            self._supersede(granted.seq, granted.epoch)
            return found  # it may have been read before an invalidation that L2 does not know of yet
        self._stop_extending()
        kept_ms = keep_ms(record, self.rules)
        record.epoch, record.seq, record.created_ms = granted.epoch, granted.seq, self._read_ms(granted.epoch)
        index = self.key.shard
        try:
            change = await self._change_of(record, kept_ms, over)
        except L2Unavailable:  # it may not have run, so the lease is still to be given back
            self._node.counters.l2_errors += 1
            self._supersede(granted.seq, granted.epoch, told=False)
            self._admit(found, record, fenced=False)
            return found
        self._held = False
        self._fetch.notice(index, change.epoch)
        if not change.stored:
            self._node.counters.fills_rejected += 1
            self._supersede(granted.seq, granted.epoch)
            logger.debug("what was loaded of {} was replaced meanwhile, and is not kept", self.key.family.data_type)
            return found
        self._node.counters.fills += 1
        self.stored = True
        record.expires_ms = change.expires_ms or record.expires_ms
        self._admit(found, record, fenced=True)
        return found

    async def _change_of(self, record: Record, px_ms: int, over: bytes) -> Change:
        caller = self._node.caller(self.key.shard)
        return await self.budget.spent_on(self._store.fill(self.key, caller, self._token, record, px_ms, over))

    async def _take_away(self, granted: LeaseReply, over: bytes) -> None:
        """The source has answered, and its answer is not kept: what it gave before serves no more."""
        index = self.key.shard
        if granted.record is not None:
            self._stop_extending()
            record = Record(NOT_FOUND, 0, b"", created_ms=1, expires_ms=1, epoch=granted.epoch, seq=granted.seq)
            try:
                change = await self._change_of(record, 1, over)
            except L2Unavailable:  # it may not have run, so the lease is still to be given back
                self._node.counters.l2_errors += 1
            else:
                self._held = False
                self._fetch.notice(index, change.epoch)
                self.stored = change.stored
        self._supersede(granted.seq, granted.epoch)

    def _supersede(self, seq: int, epoch: bytes, *, told: bool = True) -> None:
        """The source has answered: what it gave before is no fallback any more, whether L2 was `told` of it or not."""
        (self._node.take_away if told else self._node.end_fallback)(self.key, seq)
        if self.rules.fail_safe_s:
            self._fetch.superseded.note(self.key.l1, self._read_ms(epoch))

    def _read_ms(self, epoch: bytes) -> int:
        """When the load began on the L2 server's clock, at the earliest: the source may have answered as of then. In
        an epoch that this node has yet to enter the server may be another one: 0."""
        index = self.key.shard
        known = epoch == self._node.shards[index].epoch
        return int(self._node.server_clocks[index].shown_s(self._began_s) * 1000) if known else 0

    def keep_without_l2(self, found: Found, flight: Flight) -> Found:
        """L2 is out of reach: what was loaded lives on this node until D after the load began."""
        record, found = self._packed(found, flight)
        self._supersede(self._seq, self._reservation.epoch, told=False)
        if record is not None:
            record.epoch, record.seq = self._reservation.epoch, self._seq
            self._admit(found, record, fenced=False)
        return found

    def not_kept(self, found: Found, flight: Flight) -> Found:
        """What was loaded, as any node would see it, for its callers alone."""
        return found if found.value is None else self._packed(found, flight)[1]

    def _packed(self, found: Found, flight: Flight) -> tuple[Record | None, Found]:
        """The record, and the value as every node will decode it. What can't be cached, whatever is raised by encoding
        it, is given to its callers as it is, counted and logged; of "not found" without a TTL there is no record."""
        flight.make()
        if found.value is None and not self.rules.negative_ttl_s:
            return None, found
        try:
            if found.loaded is not None and found.loaded.refused is not None:
                raise NotSerializable(f"its serializer raised {type(found.loaded.refused).__name__}")
            now_s = self._clock() + self._node.server_clocks[self.key.shard].offset_s
            record, value = pack(
                found.value,
                self.rules,
                now_s,
                ttl_s=flight.ttl_s,
                tags=flight.tags,
                not_found=found.value is None,
                makeshift=flight.makeshift,
            )
        except Exception as error:  # noqa: BLE001 (a value's own methods may raise anything)
            data_type = self.key.family.data_type
            self._node.counters.of(data_type).serialization_errors += 1
            logger.error("a loaded {} can't be cached: {}: {}", data_type, type(error).__name__, error)
            return None, found._replace(serialization_error=True)
        return record, found._replace(value=value, copy=copier(record, value, self.rules))

    def _admit(self, found: Found, record: Record, *, fenced: bool) -> None:
        if self._admits:
            self._fetch.admit(
                self.key, found.value, record, self._reservation, self._began_s, self.rules, fenced=fenced
            )
