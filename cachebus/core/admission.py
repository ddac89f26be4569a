"""What is offered to L1, and what an entry of it takes with it."""

from __future__ import annotations

from collections.abc import Callable
from sys import getsizeof
from typing import Final, NamedTuple

from cachebus.core.answers import INF, NEVER, Reservation
from cachebus.core.details import Details
from cachebus.keys.key import Key
from cachebus.l1 import ENTRY_OVERHEAD_BYTES, grid, size_class
from cachebus.l1.weight import Weights
from cachebus.wire.record import COMPRESSED, Record
from cachebus.wire.terms import terms_of

CREATED_SPAN_S: Final = 32.0
"""Of `grid`: its step is a second."""


class Offer(NamedTuple):
    """A value that was read, loaded or written under a reservation."""

    key: Key
    value: object
    record: Record
    reservation: Reservation
    read_started_s: float
    """When it was asked for, on this node's clock."""
    l1_ttl_s: float = INF
    """How long it may be in L1, by its type's policy."""
    fallback_s: float = 0.0
    """How long past its expiry it may be a fallback."""
    decode: Callable[[], object] | None = None
    """Makes a copy of the value for each caller."""
    fenced: bool = True
    """Whether L2 has confirmed it. What it has not lives until D after its load began, and no longer."""

    def details(self, expires_s: float, soft_until_s: float, fallback_s: float, offset_s: float) -> Details | None:
        """What its entry has beyond the ordinary; None for most."""
        record = self.record
        if not (record.flags or record.tags or record.soft_ms or record.more or fallback_s or self.decode is not None):
            return None
        return Details(
            not_found=record.not_found,
            soft_until_s=soft_until_s,
            fallback_until_s=expires_s + fallback_s,
            tags=record.tags,
            version=record.version,
            decode=self.decode,
            terms=terms_of(record.more),
            created_s=self.created_s(offset_s),
        )

    def created_s(self, offset_s: float) -> float:
        """When its load began, or its write was sent, on this node's clock, to a second, so that entries share it."""
        created_ms = self.record.created_ms
        return grid(created_ms / 1000 - offset_s if created_ms else self.read_started_s, CREATED_SPAN_S)

    def size_bytes(self, weights: Weights, extra: Details | None) -> int:
        """What the value and these details take, by estimate."""
        record = self.record
        compressed = record.codec >= COMPRESSED
        size = weights.of(self.key.family.data_type, self.value, len(record.payload), compressed=compressed)
        return size if extra is None else size + extra.size_bytes(record)


def entry_bytes(key: Key, size_bytes: int = 0) -> int:
    """What an entry takes whose value and details take so much, in steps that entries share."""
    return size_class(size_bytes + ENTRY_OVERHEAD_BYTES + getsizeof(key.l1))


def fast_path_until_s(extra: Details | None, expires_s: float) -> float:
    """Until when the fast path may serve an entry: to the slow one goes what is copied, soft, or says "not found"."""
    if extra is None:
        return expires_s
    return NEVER if extra.not_found or extra.decode is not None else min(expires_s, extra.soft_until_s)


class ReadBounds:
    """Until when what was read is served without the lease: until D after its reading began."""

    __slots__ = ("_bound_s", "_last")

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._last = NEVER, NEVER

    def until_s(self, started_s: float) -> float:
        """For a read that began then; all that are judged between two probes began at the same time."""
        before_s, until_s = self._last
        if started_s != before_s:
            until_s = grid(started_s + self._bound_s, self._bound_s)
            self._last = started_s, until_s
        return until_s


def deadline_s(server_ms: int, offset_s: float, now_s: float) -> float:
    """A time on the L2 server's clock (0 = never) on this node's, on the grid that entries share. `offset_s`: how far
    the server's clock is ahead."""
    if not server_ms:
        return INF
    at_s = server_ms / 1000 - offset_s
    return grid(at_s, at_s - now_s)
