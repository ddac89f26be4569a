"""One fill: the lease held while a load runs, and what was loaded offered to L2, then to L1."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from typing import NamedTuple

from loguru import logger

from cachebus.coherence import Reservation
from cachebus.errors import L2Unavailable, NotSerializable, ValueTooLarge
from cachebus.fetch import MISSING, Fetcher
from cachebus.keys import Key
from cachebus.loading import Flight
from cachebus.packing import keep_ms, pack
from cachebus.policy import Rules
from cachebus.ports import Leased, LeaseReply
from cachebus.record import Record

_tokens = itertools.count()


class Loaded(NamedTuple):
    """What a source gave: None means not found; `source` says which ("database", "generation"). `refused`: why the
    value is not to be cached."""

    value: object
    source: str = "database"
    db_ms: float = 0.0
    generation_ms: float = 0.0
    error: BaseException | None = None
    refused: Exception | None = None


class Found(NamedTuple):
    """What a read gave, and from where: `level` "l1", "l2" or None; `loaded` when it came from the source."""

    value: object
    level: str | None
    loaded: Loaded | None = None
    stale: bool = False
    serialization_error: bool = False


Load = Callable[[], Coroutine[object, object, Loaded]]


class Filler:
    """One fill: holds its lease while the load runs, and offers what was loaded to L2, then to L1."""

    def __init__(
        self, fetcher: Fetcher, key: Key, rules: Rules, lease_ms: int, *, ttl_s: float | None, tags: Sequence[str],
        enter: bool, over: bytes = b"",
    ) -> None:  # fmt: skip
        self.key, self.rules = key, rules
        self._fetch, self._node, self._store = fetcher, fetcher.node, fetcher.store
        self._clock = fetcher.clock
        self._ttl_s, self._tags, self._enter, self._over = ttl_s, tags, enter, over
        self._token = f"{self._node.id}-{next(_tokens):x}"
        self._timer: asyncio.TimerHandle | None = None
        self._lease_ms = lease_ms
        self._granted: LeaseReply | None = None
        self._reservation: Reservation
        self._started_s = 0.0
        self._seq = 0

    def reserve_alone(self) -> None:
        """Begin a load that L2 will hear nothing of."""
        view = self._node.shards[self.key.shard]
        self._reservation = view.reserve()
        self._started_s = self._clock()
        # The source shows by now whatever this node has heard of, behind a hole too, and whatever it holds of the key:
        # called by `applied` alone, the load would be kept out by what it is newer than.
        held = self._node.trusted(self.key)
        self._seq = view.head if held is None else max(view.head, held.seq)

    @property
    def began_s(self) -> float:
        """When the lease was asked for, or the load without one began."""
        return self._started_s

    def not_kept(self, found: Found) -> Found:
        """What was loaded, as any node would see it, for its callers alone."""
        if found.stale or found.value is None:
            return found
        try:
            return found._replace(value=self._packed(found)[1])
        except (NotSerializable, ValueTooLarge) as error:
            return self._uncached(found, error)

    async def lease(self, *, refresh: bool = False) -> LeaseReply:
        """Ask for the lease once; a granted one is extended from now on."""
        self.reserve_alone()
        index = self.key.shard
        try:
            reply = await self._store.lease(
                self.key, self._node.caller(index), self._token, self._lease_ms, refresh=refresh,
                tags=self._tags,
            )  # fmt: skip
        except BaseException:
            self._store.release(self.key, self._token)  # it may have been granted, and nobody would know
            raise
        self._fetch.notice(index, reply.epoch)
        if reply.outcome is Leased.GRANTED:
            self._granted = reply
            self._let_go()
            self._hold_on()
        return reply

    def _hold_on(self) -> None:
        def extend() -> None:
            self._store.extend(self.key, self._token, self._lease_ms)
            self._hold_on()

        self._timer = asyncio.get_running_loop().call_later(self._lease_ms / 3000, extend)

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def release(self) -> None:
        """Give the lease back; awaits nothing, since a cancelled load may do nothing more."""
        self._let_go()
        if self._granted is not None:
            self._store.release(self.key, self._token)

    def value_of(self, data: bytes | None) -> object:
        """The value of a record that the lease script found valid."""
        record = None if data is None else self._fetch.decoded(data)
        if record is None:
            return MISSING
        return self._fetch.taken(self.key, record, self._reservation if self._enter else None, self._started_s)

    def stand_in(self, flight: Flight[Found], data: bytes) -> None:
        """Give the flight the value of an expired record, which L2 has just validated, where fail-safe allows it."""
        record = self._fetch.decoded(data) if self.rules.fail_safe_s else None
        value = MISSING if record is None else self._fetch.taken(self.key, record, None, self._started_s)
        if record is not None and value is not MISSING:
            flight.stale = Found(value, "l2", stale=True)
            flight.heed(self._node.shards[self.key.shard].standing(self.key.family.bucket, record.tags))

    async def fill(self, found: Found) -> Found:
        """Offer what was loaded to L2; only what L2 accepted enters L1 for longer than D."""
        granted = self._granted
        if granted is None:
            raise RuntimeError("a fill without a lease")
        if found.value is None and not self.rules.negative_ttl_s:
            self.release()
            return found
        try:
            record, value = self._packed(found)
        except (NotSerializable, ValueTooLarge) as error:
            self.release()
            return self._uncached(found, error)
        if self._node.withheld is not None and self._node.withheld.covers(self.key, self._tags):
            self.release()  # it may have been read before an invalidation that L2 does not know of yet
            return found._replace(value=value)
        self._let_go()
        found = found._replace(value=value)
        record.epoch, record.seq = granted.epoch, granted.seq
        index = self.key.shard
        try:
            change = await self._store.fill(
                self.key, self._node.caller(index), self._token, record, keep_ms(record, self.rules), self._over
            )
        except BaseException as error:
            self._store.release(self.key, self._token)  # it may not have run: others need not wait for the lease's end
            if not isinstance(error, L2Unavailable):
                raise
            self._node.counters.l2_errors += 1
            self._enter_l1(found, record, fenced=False)
            return found
        self._fetch.notice(index, change.epoch)
        if not change.stored:
            self._node.counters.fills_rejected += 1
            return found
        self._node.counters.fills += 1
        record.expires_ms = change.expires_ms or record.expires_ms
        self._enter_l1(found, record, fenced=True)
        return found

    async def keep_alone(self, found: Found) -> Found:
        """L2 is out of reach: what was loaded lives on this node until D after the load began."""
        if found.stale or (found.value is None and not self.rules.negative_ttl_s):
            return found
        try:
            record, value = self._packed(found)
        except (NotSerializable, ValueTooLarge) as error:
            return self._uncached(found, error)
        record.epoch, record.seq = self._reservation.epoch, self._seq
        found = found._replace(value=value)
        self._enter_l1(found, record, fenced=False)
        return found

    def _packed(self, found: Found) -> tuple[Record, object]:
        """The record, and the value as every node will decode it."""
        if found.loaded is not None and found.loaded.refused is not None:
            raise NotSerializable(f"its serializer raised {type(found.loaded.refused).__name__}")
        server_clock = self._node.server_clocks[self.key.shard]
        now_s, not_found = self._clock() + server_clock.offset_s, found.value is None
        return pack(found.value, self.rules, now_s, ttl_s=self._ttl_s, tags=self._tags, not_found=not_found)

    def _enter_l1(self, found: Found, record: Record, *, fenced: bool) -> None:
        if self._enter:
            self._fetch.admit(
                self.key, found.value, record, self._reservation, self._started_s, self.rules, fenced=fenced
            )

    def _uncached(self, found: Found, error: Exception) -> Found:
        data_type = self.key.family.data_type
        self._node.counters.of(data_type).serialization_errors += 1
        logger.error("a loaded {} can't be cached: {}", data_type, error)
        return found._replace(serialization_error=True)
