"""A look at what is cached under a key: the value that a read would be given, and what is known of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from cachebus.base.choices import Level
from cachebus.core.answers import NEVER
from cachebus.core.details import created_s, details
from cachebus.core.ports import Position
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key, tag_of
from cachebus.l1 import Entry
from cachebus.reading.fetch import NOTHING_SEEN, Seen, record_of
from cachebus.reading.judge import MISSING
from cachebus.reading.parts import LoadParts
from cachebus.reading.read import handed_out
from cachebus.wire.record import Record
from cachebus.wire.terms import NO_TERMS, terms_of

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class CachedValue(Generic[T_co]):
    """What `Cache.look` gives. Of these there is exactly one: `found`, `not_found`, `is_fallback`, `absent`."""

    value: T_co | None = None
    """As a read gives it; also an expired one (`is_fallback`)."""
    level: Level | None = None
    """Which level had it: "l1", "l2", or None."""
    found: bool = False
    """Whether reads are given this value."""
    not_found: bool = False
    """Whether it is cached that the source has none."""
    is_fallback: bool = False
    """Whether it is expired, and kept for when the source fails: `get` does not give it, a load may."""
    is_stale: bool = False
    """Whether it is past its soft expiry, so that the next load refreshes it, or expired."""
    age_s: float | None = None
    """Seconds since its load began, its write was sent, or its source last said that it is right; in L1 known to a
    second. None where that is unknown."""
    ttl_left_s: float | None = None
    """Seconds that this level still gives it, infinity for ever; in L1 rounded down by up to a 32nd."""
    soft_left_s: float | None = None
    """Seconds until it is refreshed; 0 or less past that, None where it is not."""
    version: str = ""
    """The source's own, as its loader said by `Fresh(..., version=...)`."""
    tags: tuple[str, ...] = ()
    """All that it carries: its callers', its type's, its loader's."""

    @property
    def absent(self) -> bool:
        """Whether nothing is cached."""
        return not (self.found or self.not_found or self.is_fallback)


ABSENT_VALUE: Final[CachedValue[object]] = CachedValue()


async def looked_at(parts: LoadParts, key: Key, after: Position | None) -> CachedValue[object]:
    """What a read would find, counted as one; an expired value where there is nothing else. `L2Unavailable`, unless an
    outage is a miss."""
    reader, node = parts.reader, parts.fetch.node
    if reader.bypass.here():
        return ABSENT_VALUE
    counters = node.counters.of(key.family.data_type)
    seen: Seen = NOTHING_SEEN
    entry = reader.remembered(key, after)
    if entry is not None:
        counters.l1_hits += 1
        return _in_l1(entry, node.clock())
    if parts.enabled:
        try:
            seen = await parts.fetch.read_one(key, after)
        except L2Unavailable as error:
            if not reader.note_outage(error, key):
                raise
    record, now_s = record_of(seen), node.server_now_s(key.shard)
    if record is not None:
        counters.l2_hits += 1
        return _in_l2(seen[0], record, now_s)
    counters.misses += 1
    return _expired_in_l1(parts, key, after) or _expired_in_l2(parts, key, seen[1]) or ABSENT_VALUE


def _in_l1(entry: Entry, now_s: float) -> CachedValue[object]:
    extra, made_s = details(entry), created_s(entry)
    not_found = extra is not None and extra.not_found
    soft_left_s = None if extra is None or extra.soft_until_s == math.inf else extra.soft_until_s - now_s
    return CachedValue(
        value=None if not_found else handed_out(entry),
        level="l1",
        found=not not_found,
        not_found=not_found,
        is_stale=soft_left_s is not None and soft_left_s <= 0,
        age_s=None if made_s == NEVER else max(0.0, now_s - made_s),
        ttl_left_s=entry.expires_s - now_s,
        soft_left_s=soft_left_s,
        version=(NO_TERMS if extra is None else extra.terms).version,
        tags=() if extra is None else tuple(map(tag_of, extra.tags)),
    )


def _expired_in_l1(parts: LoadParts, key: Key, after: Position | None) -> CachedValue[object] | None:
    node = parts.fetch.node
    shard, entry = node.shards[key.shard], node.fallback(key, node.clock())
    if entry is None or (after is not None and not shard.honours(after.epoch, after.seq)):
        return None
    return replace(_in_l1(entry, node.clock()), found=False, is_fallback=True, is_stale=True)


def _in_l2(value: object, record: Record, now_s: float) -> CachedValue[object]:
    """`now_s`: on the L2 server's clock."""
    soft_left_s = record.soft_ms / 1000 - now_s if record.soft_ms else None
    return CachedValue(
        value=None if record.not_found else value,
        level="l2",
        found=not record.not_found,
        not_found=record.not_found,
        is_stale=soft_left_s is not None and soft_left_s <= 0,
        age_s=max(0.0, now_s - record.created_ms / 1000) if record.created_ms else None,
        ttl_left_s=record.expires_ms / 1000 - now_s if record.expires_ms else math.inf,
        soft_left_s=soft_left_s,
        version=terms_of(record.more).version,
        tags=tuple(map(tag_of, record.tags)),
    )


def _expired_in_l2(parts: LoadParts, key: Key, data: bytes | None) -> CachedValue[object] | None:
    """What a read did not take, if that is because it has expired."""
    fetch, node = parts.fetch, parts.fetch.node
    record = None if data is None else fetch.judge.decoded(key, data, looked_up=True)
    if record is None or not fetch.judge.rules(key).fail_safe_s or not record.may_be_fallback:
        return None
    shard = node.shards[key.shard]
    if not fetch.judge.expired(key.shard, record) or node.may_predate_lost_guards(key.shard, record):
        return None  # of another epoch, too
    if fetch.superseded.covers(key.l1, record.created_ms) or shard.doubts.open(
        (*key.scopes, *record.tags), shard.fresh_as_of_s
    ):
        return None
    value = fetch.judge.decode_and_admit(key, record, None)
    if value is MISSING:
        return None
    seen = _in_l2(value, record, node.server_now_s(key.shard))
    return replace(seen, found=False, is_fallback=True, is_stale=True)
