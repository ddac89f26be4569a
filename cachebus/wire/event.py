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
The script makes the header; CRC and body are made by the one who invalidates. A part is one write: [keys, scopes,
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
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

MAGIC: Final = b"CB2"
WAKE: Final = b"CBW"
NO_BUCKET: Final = "--"
LEFT_OUT: Final = 1
_FIELDS = Struct(">3sB16sQQ2sQ")
_HEADER = Struct(">3sB16sQQ2sQ8sI")
_CRC = Struct(">I")
_CHECK_AT = _FIELDS.size
HEADER_BYTES: Final = _HEADER.size - _CRC.size
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


class LowWatermark(NamedTuple):
    """One that an event has raised, and the bucket that it is of."""

    bucket: str
    seq: int


NONE_RAISED: Final = LowWatermark(NO_BUCKET, 0)


class EventHeader(NamedTuple):
    """What stands in front of an event's body."""

    epoch: bytes
    seq: int
    published_us: int
    left_out: bool = False
    """Whether ids were left out of the marks."""
    low: LowWatermark = NONE_RAISED

    def encode(self, body: bytes) -> bytes:
        """Its bytes around a body of `encode_body`: what the script does in L2."""
        flags, bucket = LEFT_OUT if self.left_out else 0, self.low.bucket.encode()
        fields = _FIELDS.pack(MAGIC, flags, self.epoch, self.seq, self.published_us, bucket, self.low.seq)
        return fields + _check(fields + body[: _CRC.size])


class Event:
    """One event: its position in the shard's history, and what it replaces."""

    __slots__ = ("epoch", "keys", "left_out", "low", "more", "parts", "published_us", "scopes", "seq")

    def __init__(self, header: EventHeader, parts: Sequence[WritePart], more: Mapping[str, Any] | None = None) -> None:
        self.epoch, self.seq, self.published_us, self.left_out, self.low = header
        self.parts = parts
        self.more = more or {}
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


def encode(epoch: bytes, seq: int, published_us: int, body: bytes) -> bytes:
    """A whole event around a body of `encode_body`, that raises no watermark."""
    return EventHeader(epoch, seq, published_us).encode(body) + body


def with_header(header: bytes, body: bytes, parts: Sequence[WritePart]) -> Event:
    """The event of a header that a script has just made around a body of these parts; `CorruptEvent`."""
    if len(header) != HEADER_BYTES or _check(header[:_CHECK_AT] + body[: _CRC.size]) != header[_CHECK_AT:]:
        raise CorruptEvent("its header is damaged")
    _, flags, epoch, seq, published_us, bucket, low = _FIELDS.unpack_from(header)
    low_watermark = LowWatermark(bucket.decode(), low)
    return Event(EventHeader(epoch, seq, published_us, bool(flags & LEFT_OUT), low_watermark), parts)


def _check(data: bytes) -> bytes:
    return sha1(data, usedforsecurity=False).hexdigest()[:8].encode()


def position_of(data: bytes) -> tuple[bytes, int]:
    """Epoch and seq as they stand in an event's header, of bytes that need not be one."""
    return data[4:20], int.from_bytes(data[20:28], "big")


def published_us(data: bytes) -> int:
    """When it was published, as it stands in an event's header, of bytes that need not be one."""
    return int.from_bytes(data[28:36], "big")


def decode(data: bytes) -> Event:
    """The event in these bytes, or `CorruptEvent`, whatever they are: a changed bit anywhere is found."""
    if len(data) <= _HEADER.size:
        raise CorruptEvent("shorter than an event's header")
    magic, flags, epoch, seq, published_us, bucket, low, check, crc = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if magic != MAGIC or crc32(body) != crc:
        raise CorruptEvent("not an event of this format, or damaged")
    if _check(data[:_CHECK_AT] + data[HEADER_BYTES : _HEADER.size]) != check:
        raise CorruptEvent("its header is damaged")
    try:
        found = _decode_body(body)
        low_watermark = LowWatermark(bucket.decode(), low)
        return Event(
            EventHeader(epoch, seq, published_us, bool(flags & LEFT_OUT), low_watermark), found.parts, found.more
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptEvent(str(error)) from None
