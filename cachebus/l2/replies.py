"""What the scripts reply, and what nodes say of themselves, from bytes and back.

A reply of another shape than its script's raises, be it this or that: the connection takes all of it for nonsense. A
row, a mark or an entry of the log, which others may have written, is passed over where it is none of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from struct import Struct
from typing import Any, Final, NamedTuple

import msgspec

from cachebus.core.ports import (
    About,
    Change,
    FillLeaseOutcome,
    FillLeaseReply,
    Invalidated,
    LogEntry,
    NodeRow,
    NodesReply,
    ProbeReply,
    ReadReply,
)
from cachebus.resp import Misshapen, Reads

NAME = b"#"
"""Under which the name of the present set of rows lies among them."""

KEEP_ALONE = "keep_alone"
"""In `more` of a row: false where the node keeps nothing that it loads without L2. Who does not say that counts as one
that does: waits go by it."""
_encode = msgspec.msgpack.encode


BOUND_MAX_MS = 3_600_000
"""No node may have a larger staleness bound, so a row that says so is damaged, and must not make others wait."""


class _Row(msgspec.Struct):
    applied: int
    epoch: str
    at_us: int
    bound_ms: int = 0
    guard_ms: int = 0
    more: dict[str, Any] = {}


_decode_row = msgspec.msgpack.Decoder(_Row).decode


def unless_none(reads: Reads, reply: Any) -> Any:
    """What a script replies; None where it has found another history, and did nothing."""
    return None if reply is None else reads(reply)


@lru_cache(maxsize=64)
def row_rest(about: About) -> bytes:
    """The part of a node's row that the node packs itself; the script puts the others in front."""
    more = dict(about.more) if about.keeps_without_l2 else {**dict(about.more), KEEP_ALONE: False}
    pairs = {"bound_ms": about.bound_ms, "guard_ms": about.guard_ms, "more": more}
    return b"".join(_encode(name) + _encode(value) for name, value in pairs.items())


UNREADABLE: Final = NodeRow(0, b"", 0)
"""Stands for a row that can't be read: of a node that has applied nothing, and was never heard of."""


def node_row(data: bytes) -> NodeRow:
    """A node's row; one that can't be read says that the node has applied nothing."""
    try:
        row = _decode_row(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return UNREADABLE
    keeps_without_l2 = row.more.pop(KEEP_ALONE, True) is not False
    about = About(min(row.bound_ms, BOUND_MAX_MS), row.guard_ms, tuple(row.more.items()), keeps_without_l2)
    return NodeRow(row.applied, row.epoch.encode(), row.at_us, about)


_NONE = type(None)
_EPOCH_BYTES: Final = 16


class ReplyShape:
    """What a script replies: epoch and seq, then what is of these types; of a tuple of types, of one of them."""

    def __init__(self, *types: type | tuple[type, ...]) -> None:
        each = ((kind,) if isinstance(kind, type) else kind for kind in (bytes, int, *types))
        self._fits = frozenset(product(*each))

    def of(self, reply: Any) -> list[Any]:
        """The reply, or `Misshapen`."""
        fits = reply.__class__ is list and tuple(map(type, reply)) in self._fits
        if not fits or len(reply[0]) != _EPOCH_BYTES or reply[1] < 0:
            raise Misshapen("not what this script replies")
        found: list[Any] = reply
        return found


_POSITION, _WITH_NUMBER, _PROBE = (
    ReplyShape(),
    ReplyShape(int),
    ReplyShape(bytes, bytes, int, int, (bytes, _NONE), int, int),
)
_MARKS = ReplyShape(bytes, bytes, int, int, (bytes, _NONE), list, list, int)
_LEASE, _NODES, _COUNTER = (
    ReplyShape(bytes, (bytes, _NONE), int),
    ReplyShape(int, list, int),
    ReplyShape((bytes, _NONE)),
)
_FILLED, _INVALIDATED, _WRITTEN = ReplyShape(int, int), ReplyShape(int, bytes), ReplyShape(int, bytes, int, int)
_STRINGS: Final = frozenset((bytes, _NONE))


def position_of(reply: Any) -> tuple[bytes, int]:
    """Epoch and seq: all that `takeover` replies."""
    epoch, seq = _POSITION.of(reply)
    return epoch, seq


def number_of(reply: Any) -> int:
    """What `forget` or `hold` replied."""
    return int(_WITH_NUMBER.of(reply)[2])


def probe_of(reply: Any) -> ProbeReply:
    """What `probe` replied."""
    *rest, replicas = _PROBE.of(reply)
    return _probe(rest, None)._replace(loose_replicas=replicas)


def probe_with_invalidated(reply: Any) -> ProbeReply:
    """What `marks` replied."""
    *rest, invalidated, low, keeps_without_l2 = _MARKS.of(reply)
    return _probe([*rest, keeps_without_l2], invalidated_of(invalidated, low))


def _probe(reply: list[Any], invalidated: Invalidated | None) -> ProbeReply:
    epoch, seq, server_us, name, bound_ms, guard_ms, born_us, keeps_without_l2 = reply
    return ProbeReply(
        epoch, seq, int(server_us), invalidated, name, bound_ms, guard_ms, int(born_us or 0), bool(keeps_without_l2)
    )


def records_of(count: int, reply: Any) -> ReadReply:
    """What `read` replied for so many keys."""
    records = reply[2:]
    _POSITION.of(reply[:2])
    if len(records) != count or not _STRINGS.issuperset(map(type, records)):
        raise Misshapen("not a record, or nothing, for each key")
    return ReadReply(reply[0], reply[1], records)


def fill_lease_of(reply: Any) -> FillLeaseReply:
    """What `fill_lease` replied."""
    epoch, seq, outcome, record, wait_ms = _LEASE.of(reply)
    leased = FillLeaseOutcome(outcome.decode())
    if leased is FillLeaseOutcome.HIT and record is None:
        raise Misshapen("a hit without a record")
    return FillLeaseReply(epoch, seq, leased, record, wait_ms)


def filled(reply: Any) -> Change:
    """What `fill` replied."""
    epoch, seq, stored, expires_ms = _FILLED.of(reply)
    return Change(epoch, seq, bool(stored), expires_ms=expires_ms)


def invalidation_of(reply: Any) -> Change:
    """What `invalidate` or `guard` replied; below zero: too many names are guarded, or one by too many."""
    epoch, seq, bound_ms, header = _INVALIDATED.of(reply)
    return Change(epoch, seq, bound_ms >= 0, header, bound_ms=max(bound_ms, 0))


def written(reply: Any) -> Change:
    """What `write` replied."""
    epoch, seq, bound_ms, header, stored, expires_ms = _WRITTEN.of(reply)
    return Change(epoch, seq, bool(stored), header, expires_ms, bound_ms)


class Counted(NamedTuple):
    """A counter's value; None where it would have left 64 bits."""

    value: int | None


def counted(reply: Any) -> Counted:
    """What `counter` replied."""
    value = _COUNTER.of(reply)[2]
    return Counted(None if value is None else int(value))


def logged(reply: Any) -> list[LogEntry]:
    """What XRANGE gave of the log."""
    if reply.__class__ is not list:
        raise Misshapen("no entries")
    return [LogEntry(log_seq(entry_id), message_of(fields)) for entry_id, fields in reply]


def nodes_of(reply: Any) -> NodesReply:
    """What the script `nodes` replied."""
    epoch, _, bound_ms, flat, keeps_without_l2 = _NODES.of(reply)
    rows = dict(zip(flat[::2], flat[1::2], strict=True))
    name = rows.pop(NAME, b"")
    known = {node.decode(errors="replace"): node_row(row) for node, row in rows.items()}
    return NodesReply(epoch, name, min(bound_ms, BOUND_MAX_MS), known, bool(keeps_without_l2))


class BucketState(NamedTuple):
    """What is counted of a bucket's marks: how many there are, the size of their names, and the low watermark."""

    members: int
    size: int
    low: int


_BUCKET = Struct(">IIQ")


def buckets_of(flat: Sequence[bytes]) -> dict[str, BucketState]:
    """The counts of every bucket that has, or had, marks; what is none of ours is left out."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {
        bucket.decode(errors="replace"): BucketState(*_BUCKET.unpack(state))
        for bucket, state in pairs
        if len(state) == _BUCKET.size
    }


def invalidated_of(invalidated: Sequence[Any], low: Sequence[bytes]) -> Invalidated:
    """Marks by bucket, and low watermarks."""
    return Invalidated(
        {
            # A name that is no text is none of ours, and takes a place until it is trimmed.
            bucket.decode(): {
                n.decode(errors="replace"): int(float(seq)) for n, seq in zip(flat[::2], flat[1::2], strict=True)
            }
            for bucket, flat in zip(invalidated[::2], invalidated[1::2], strict=True)
        },
        {bucket.decode(): int(float(seq)) for bucket, seq in zip(low[::2], low[1::2], strict=True)},
    )


def log_seq(entry_id: bytes) -> int:
    """The seq in an entry's id; -1 for an id that is none of ours (no seq is negative, so it can only be a gap)."""
    seq, dash, total = entry_id.partition(b"-")
    return int(seq) if dash and total != b"0" else -1


def message_of(fields: Sequence[bytes] | None) -> bytes:
    """The event in an entry; empty where there is none."""
    if not fields or len(fields) != 2 or fields[0] != b"e" or not isinstance(fields[1], bytes):
        return b""
    return fields[1]
