"""What a cached value looks like in memory, and the small numbers that many entries share.

A node holds a hundred thousand entries, so every slot costs a megabyte: what entries have in common lives in their
`Group`, and deadlines and sizes are rounded so that equal ones are one and the same Python object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isinf

import msgspec

ENTRY_OVERHEAD_BYTES = 220
"""Upper estimate of what an entry costs beside its key string and its value: add it to the estimate of the value."""

_SHARED_MAX = 2048
# By the bit length of a span's whole seconds: powers of two, so that the grids of different spans meet.
_STEPS_S = (1 / 64, *(2.0**bits / 32 for bits in range(64)))

_deadlines: dict[float, float] = {}
_seqs: dict[int, int] = {}
_sizes: dict[int, int] = {}


@dataclass(slots=True, eq=False)
class Group:
    """What all entries of one shard and data type share: how long they may be served, and their counters.

    `valid_until_s` (seconds, monotonic) is the shard's lease; minus infinity retires the group for good, and
    with it every entry that still points to it. `generation` says in which life of the shard it began (`Groups.lives`).
    `fenced` is False for groups of values that L2 has not confirmed, which the lease does not cover. `born_at_drop`:
    how many drops the shard had counted when it began.
    """

    shard: int
    data_type: str
    valid_until_s: float
    generation: int
    fenced: bool
    born_at_drop: int = 0
    hits: float = field(default=0.0, init=False)
    """A whole number, exact to 2^53. Adding to an int makes each hit 5 % slower."""


# Left out of the garbage collector's sight (gc=False): a full collection over 100 000 entries then holds the loop for
# 2 ms instead of 45, and each entry is 16 bytes smaller. The price: a cycle through an entry is never collected, so
# nothing that an entry owns may point back at it, and a cache that is done with must `clear()` its L1.
class Entry(msgspec.Struct, gc=False, eq=False):
    """One cached value. Once it is in an `L1`, `key` never changes, and `size` only by it; compared by identity.

    Shapes: all times are seconds on the monotonic clock, best made by `grid`. `fast_until_s` minus infinity sends every
    read to the slow path. `read_until_s` is when the value may no longer be served without the lease. `seq` is
    the sequence number it was read at. `size` is in bytes, best made by `size_class`. `extra` belongs to the node,
    which must not let it refer back to the entry. `freq` counts hits, 0 to 3, and is bumped by the reader.
    """

    key: str
    value: object
    group: Group
    fast_until_s: float
    seq: int
    read_until_s: float
    expires_s: float
    size: int
    extra: object = None
    freq: int = 0


def grid(deadline: float, span_s: float = 0.0) -> float:
    """Round a deadline (seconds) DOWN to a grid and return the one shared object for it; an infinity stays as it is.

    `span_s` (below 2**60) is about the time from now to the deadline: the grid is at most 1/32 of it, or 1/64 s where
    that is more. An hour's TTL ends up to 64 s early, which costs a read of L2; but a hundred thousand entries then
    share a hundred floats.
    """
    if isinf(deadline):
        return deadline
    rounded = deadline - deadline % _STEPS_S[int(span_s).bit_length()]
    shared = _deadlines.get(rounded)
    if shared is None:
        if len(_deadlines) >= _SHARED_MAX:
            _deadlines.clear()
        shared = _deadlines[rounded] = rounded
    return shared


def shared_int(number: int) -> int:
    """Return the one shared object for equal ints, as for `Entry.seq`: one of its own would be 32 bytes an entry."""
    if len(_seqs) >= _SHARED_MAX:
        _seqs.clear()
    return _seqs.setdefault(number, number)


def size_class(size: int) -> int:
    """Round a size in bytes UP by at most 1/16, to one of a few hundred shared ints."""
    shift = max(0, size.bit_length() - 5)
    rounded = -(-size >> shift) << shift
    return _sizes.setdefault(rounded, rounded)
