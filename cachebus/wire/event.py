"""An invalidation as it travels: on the channel, and in the log.

```
offset  bytes
0       3     "CB2"
3       1     flags: 1 = ids in all contexts were left out of the marks, as nothing of their types lies in any context
4       16    epoch, hexadecimal digits
20      8     seq (big-endian, like all numbers here)
28      8     when it was published, µs on the L2 server's clock
36      2     the bucket of marks whose low watermark this event has raised; "--" = none
38      8     that low watermark
46      8     the first 8 hex digits of SHA-1 over all before, and the CRC behind
54      4     CRC-32 of the body
58            body: msgpack [parts, more]
```
The script makes the head; CRC and body are made by the one who invalidates. A part is one write: [keys, scopes,
origin, reason, trace]. `keys` are names as in L1, `scopes` those of scopes and tags; origin, reason and trace are text,
"" where nobody said. `more` is a map; `probe` in it asks every node to probe at once, since somebody waits for them. A
reader passes over what it does not know: in `more`, at the end of a part, and at the end of the body.

A message is told by its first bytes. On the same channel "CBW" and a key's L1 name say: the fill that you waited for is
there. Others are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha1
from struct import Struct
from typing import Any, Final
from zlib import crc32

import msgspec

MAGIC: Final = b"CB2"
WAKE: Final = b"CBW"
NO_BUCKET: Final = "--"
LEFT_OUT: Final = 1
_FIELDS = Struct(">3sB16sQQ2sQ")
_HEAD = Struct(">3sB16sQQ2sQ8sI")
_CRC = Struct(">I")
_CHECK_AT = _FIELDS.size
HEAD_BYTES: Final = _HEAD.size - _CRC.size
"""What comes before the part that the publisher makes."""


class CorruptEvent(ValueError):
    """The bytes are no event of this format."""


class WritePart(msgspec.Struct, array_like=True, gc=False):
    """What one write replaces: `keys` (L1 names), `scopes` (and tags); by whom, why, and in which trace."""

    keys: list[str]
    scopes: list[str]
    origin: str = ""
    reason: str = ""
    trace: str = ""


class _Body(msgspec.Struct, array_like=True, gc=False):
    parts: list[WritePart]
    more: dict[str, Any] = {}


class Event:
    """One event: its place in the shard's history, and what it replaces."""

    __slots__ = ("bucket", "epoch", "keys", "left_out", "low", "more", "parts", "published_us", "scopes", "seq")

    def __init__(
        self,
        epoch: bytes,
        seq: int,
        published_us: int,
        parts: Sequence[WritePart],
        *,
        more: Mapping[str, Any] | None = None,
        left_out: bool = False,
        bucket: str = NO_BUCKET,
        low: int = 0,
    ) -> None:
        self.epoch, self.seq, self.published_us, self.parts = epoch, seq, published_us, parts
        self.more = more or {}
        self.left_out, self.bucket, self.low = left_out, bucket, low
        self.keys: Sequence[str]
        """The L1 names of all parts."""
        self.scopes: Sequence[str]
        """The scopes and tags of all parts."""
        if len(parts) == 1:
            self.keys, self.scopes = parts[0].keys, parts[0].scopes
        else:
            self.keys = [key for part in parts for key in part.keys]
            self.scopes = [scope for part in parts for scope in part.scopes]

    @property
    def origin(self) -> str:
        """Who has made it, where that is one."""
        return self.parts[0].origin if len(self.parts) == 1 else ""

    @property
    def asks_for_probe(self) -> bool:
        """Whether somebody waits for the nodes: each is to probe at once."""
        return bool(self.more.get("probe"))


_encoder = msgspec.msgpack.Encoder()
_decode_body = msgspec.msgpack.Decoder(_Body).decode


def encode_body(parts: Sequence[WritePart], *, probe: bool = False) -> bytes:
    """CRC and body: the part of an event that its publisher writes."""
    body = _encoder.encode(_Body(list(parts), {"probe": True} if probe else {}))
    return _CRC.pack(crc32(body)) + body


def encode_head(
    epoch: bytes,
    seq: int,
    published_us: int,
    body: bytes,
    *,
    left_out: bool = False,
    bucket: str = NO_BUCKET,
    low: int = 0,
) -> bytes:
    """The head of an event around a body of `encode_body`: what the script does in L2."""
    fields = _FIELDS.pack(MAGIC, LEFT_OUT if left_out else 0, epoch, seq, published_us, bucket.encode(), low)
    return fields + _check(fields + body[: _CRC.size])


def encode(epoch: bytes, seq: int, published_us: int, body: bytes) -> bytes:
    """A whole event around a body of `encode_body`, that raises no watermark."""
    return encode_head(epoch, seq, published_us, body) + body


def with_head(head: bytes, body: bytes, parts: Sequence[WritePart]) -> Event:
    """The event of a head that a script has just made around a body of these parts; `CorruptEvent`."""
    if len(head) != HEAD_BYTES or _check(head[:_CHECK_AT] + body[: _CRC.size]) != head[_CHECK_AT:]:
        raise CorruptEvent("its head is damaged")
    _, flags, epoch, seq, published_us, bucket, low = _FIELDS.unpack_from(head)
    return Event(epoch, seq, published_us, parts, left_out=bool(flags & LEFT_OUT), bucket=bucket.decode(), low=low)


def _check(data: bytes) -> bytes:
    return sha1(data, usedforsecurity=False).hexdigest()[:8].encode()


def position_of(data: bytes) -> tuple[bytes, int]:
    """Epoch and seq as they stand in an event's head, of bytes that need not be one."""
    return data[4:20], int.from_bytes(data[20:28], "big")


def published_us(data: bytes) -> int:
    """When it was published, as it stands in an event's head, of bytes that need not be one."""
    return int.from_bytes(data[28:36], "big")


def decode(data: bytes) -> Event:
    """The event in these bytes, or `CorruptEvent`, whatever they are: a changed bit anywhere is found."""
    if len(data) <= _HEAD.size:
        raise CorruptEvent("shorter than an event's head")
    magic, flags, epoch, seq, published_us, bucket, low, check, crc = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != MAGIC or crc32(body) != crc:
        raise CorruptEvent("not an event of this format, or damaged")
    if _check(data[:_CHECK_AT] + data[HEAD_BYTES : _HEAD.size]) != check:
        raise CorruptEvent("its head is damaged")
    try:
        told = _decode_body(body)
        return Event(
            epoch,
            seq,
            published_us,
            told.parts,
            more=told.more,
            left_out=bool(flags & LEFT_OUT),
            bucket=bucket.decode(),
            low=low,
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptEvent(str(error)) from None
