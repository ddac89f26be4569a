"""What the scripts reply, and what nodes say of themselves, from bytes and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

import msgspec

from cachebus.ports import About, Marks, NodeLine, NodesReply

NAME = b"#"
"""Under which the name of the present set of lines lies among them."""

KEEP_ALONE = "keep_alone"
"""In `more` of a line: false where the node keeps nothing that it loads without L2. Who does not say that counts as one
that does: waits go by it."""
_encode = msgspec.msgpack.encode


BOUND_MAX_MS = 3_600_000
"""No node may have a larger staleness bound, so a line that says so is damaged, and must not make others wait."""


class _Line(msgspec.Struct):
    applied: int
    epoch: str
    at_us: int
    bound_ms: int = 0
    guard_ms: int = 0
    more: dict[str, Any] = {}


_decode_line = msgspec.msgpack.Decoder(_Line).decode


@lru_cache(maxsize=64)
def line_rest(about: About) -> bytes:
    """The part of a node's line that the node packs itself; the script puts the others in front."""
    more = dict(about.more) if about.keeps_alone else {**dict(about.more), KEEP_ALONE: False}
    pairs = {"bound_ms": about.bound_ms, "guard_ms": about.guard_ms, "more": more}
    return b"".join(_encode(name) + _encode(value) for name, value in pairs.items())


def node_line(data: bytes) -> NodeLine:
    """A node's line; one that can't be read says that the node has applied nothing."""
    try:
        line = _decode_line(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return NodeLine(0, b"", 0)
    keeps_alone = line.more.pop(KEEP_ALONE, True) is not False
    about = About(min(line.bound_ms, BOUND_MAX_MS), line.guard_ms, tuple(line.more.items()), keeps_alone)
    return NodeLine(line.applied, line.epoch.encode(), line.at_us, about)


def nodes_of(reply: Sequence[Any]) -> NodesReply:
    """What the script `nodes` replied."""
    epoch, _, bound_ms, flat, alone = reply[:5]
    lines = dict(zip(flat[::2], flat[1::2], strict=True))
    name = lines.pop(NAME, b"")
    known = {node.decode(errors="replace"): node_line(line) for node, line in lines.items()}
    return NodesReply(epoch, name, min(bound_ms, BOUND_MAX_MS), known, bool(alone))


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
        bucket.decode(): BucketState(*_BUCKET.unpack(state)) for bucket, state in pairs if len(state) == _BUCKET.size
    }


def marks_of(marks: Sequence[Any], low: Sequence[bytes]) -> Marks:
    """Marks by bucket, and low watermarks."""
    return Marks(
        {
            # A name that is no text is none of ours, and takes a place until it is trimmed.
            bucket.decode(): {
                n.decode(errors="replace"): int(float(seq)) for n, seq in zip(flat[::2], flat[1::2], strict=True)
            }
            for bucket, flat in zip(marks[::2], marks[1::2], strict=True)
        },
        {bucket.decode(): int(float(seq)) for bucket, seq in zip(low[::2], low[1::2], strict=True)},
    )


def log_seq(entry_id: bytes) -> int:
    """The seq in an entry's id; -1 for an id that is none of ours (no seq is negative, so it can only be a gap)."""
    seq, dash, total = entry_id.partition(b"-")
    return int(seq) if dash and total != b"0" else -1


def message_of(fields: Sequence[bytes] | None) -> bytes:
    """The event in an entry; empty where there is none."""
    return fields[1] if fields and len(fields) == 2 and fields[0] == b"e" else b""
