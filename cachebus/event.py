"""An invalidation as it travels: on the channel, and in the log.

```
offset  bytes
0       3     "CB1"
3       16    epoch, hexadecimal digits
19      8     seq (big-endian, like all numbers here)
27      8     floor of the shard after this event
35      8     when it was published, µs on the L2 server's clock
43      4     CRC-32 of the body
47            body: msgpack [keys, names, origin, flags]
```
The script fills in all before the CRC; the body is made by the one who invalidates. `keys` are names as in L1, `names`
those of scopes and tags. `flags`: 1 = somebody waits for the nodes, each is to probe at once; a reader goes by what it
knows of them. On the same channel "CBW" and a key's L1 name say: the fill that you waited for is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from zlib import crc32

import msgspec

MAGIC = b"CB1"
WAKE = b"CBW"
HEAD = Struct(">3s16sQQQI")
CRC = Struct(">I")


PROBE = 1
"""The flag that asks every node to probe at once."""


class CorruptEvent(ValueError):
    """The bytes are no event of this format."""


class Body(msgspec.Struct, array_like=True, gc=False):
    """What is replaced: `keys` (L1 names), `names` (scopes and tags), by whom (`origin`, a node's id or "")."""

    keys: list[str]
    names: list[str]
    origin: str = ""
    flags: int = 0


class Event:
    """One event: its place in the shard's history, and what it replaces."""

    __slots__ = ("epoch", "flags", "floor", "keys", "names", "origin", "published_us", "seq")

    def __init__(
        self, epoch: bytes, seq: int, floor: int, published_us: int,
        keys: Sequence[str], names: Sequence[str], origin: str = "", flags: int = 0,
    ) -> None:  # fmt: skip
        self.epoch, self.seq, self.floor, self.published_us = epoch, seq, floor, published_us
        self.keys, self.names, self.origin, self.flags = keys, names, origin, flags


_encoder = msgspec.msgpack.Encoder()
_decode_body = msgspec.msgpack.Decoder(Body).decode


def encode_body(keys: Sequence[str], names: Sequence[str], origin: str, flags: int = 0) -> bytes:
    """CRC and body: the part of an event that its publisher writes."""
    body = _encoder.encode(Body(list(keys), list(names), origin, flags))
    return CRC.pack(crc32(body)) + body


def encode(epoch: bytes, seq: int, floor: int, published_us: int, body: bytes) -> bytes:
    """A whole event around a body of `encode_body` (what the script does in L2)."""
    return HEAD.pack(MAGIC, epoch, seq, floor, published_us, 0)[:-4] + body


def place(data: bytes) -> tuple[bytes, int]:
    """Epoch and seq as they stand in an event's head, of bytes that need not be one."""
    return data[3:19], int.from_bytes(data[19:27], "big")


def decode(data: bytes) -> Event:
    """The event in these bytes, or `CorruptEvent`, whatever they are."""
    if len(data) <= HEAD.size:
        raise CorruptEvent("shorter than an event's head")
    magic, epoch, seq, floor, published_us, crc = HEAD.unpack_from(data)
    body = data[HEAD.size :]
    if magic != MAGIC or crc32(body) != crc:
        raise CorruptEvent("not an event of this format, or damaged")
    try:
        told = _decode_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptEvent(str(error)) from None
    return Event(epoch, seq, floor, published_us, told.keys, told.names, told.origin, told.flags)
