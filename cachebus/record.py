"""What L2 holds for a key: a fixed head that Lua can read, the tags, and the payload.

```
offset  bytes
0       2     magic 0xCB and format 2
2       1     flags: 1 = the source said "not found"
3       1     codec of the payload
4       16    epoch, hexadecimal digits
20      8     seq at which its lease was granted, or of its write (big-endian, like all numbers here)
28      8     version: random, unique
36      8     created, ms on the L2 server's clock: when its load began at the earliest, or its write was sent
44      8     soft expiry, ms on that clock; 0 = none
52      8     hard expiry, ms on that clock; 0 = none (L2 may keep the record longer, for fail-safe)
60      1     number of tags
61      2     bytes of `more`
63            for each tag: 2 bytes of length, its mark's name
...           more: a msgpack map of what else is to be said of the record, or nothing
...           payload
```
Times are the server's, which every probe relates to the node's monotonic clock: no two machines' clocks are compared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from struct import Struct

MAGIC = b"\xcb\x02"
NOT_FOUND = 1
FLAGS_AT = 2
COMPRESSED = 0x80
"""A codec of this or above has a compressed payload."""
HEAD = Struct(">2sBB16sQ8sQQQBH")
_LENGTH = Struct(">H")


class CorruptRecord(ValueError):
    """The bytes are not a record of this format."""


class Record:
    """One decoded record; `payload` is still encoded."""

    __slots__ = (
        "codec", "created_ms", "epoch", "expires_ms", "flags", "more", "payload", "seq", "soft_ms", "tags", "version",
    )  # fmt: skip

    def __init__(
        self,
        flags: int,
        codec: int,
        payload: bytes,
        *,
        created_ms: int,
        soft_ms: int = 0,
        expires_ms: int = 0,
        tags: Sequence[str] = (),
        more: bytes = b"",
        epoch: bytes = b"0" * 16,
        seq: int = 0,
        version: bytes | None = None,
    ) -> None:
        self.flags, self.codec, self.payload = flags, codec, payload
        self.created_ms, self.soft_ms, self.expires_ms = created_ms, soft_ms, expires_ms
        self.tags = tags
        self.more = more
        """A msgpack map, or nothing; what a reader does not know in it, it passes over."""
        self.epoch, self.seq = epoch, seq
        self.version = os.urandom(8) if version is None else version

    @property
    def not_found(self) -> bool:
        """Whether it says that the source has nothing for the key."""
        return bool(self.flags & NOT_FOUND)

    def front(self) -> bytes:
        """All that it has before its payload; raises what does not fit in there: `struct.error`, `UnicodeError`."""
        head = HEAD.pack(
            MAGIC, self.flags, self.codec, self.epoch, self.seq, self.version,
            self.created_ms, self.soft_ms, self.expires_ms, len(self.tags), len(self.more),
        )  # fmt: skip
        if not self.tags:
            return head + self.more
        names = [tag.encode() for tag in self.tags]
        return b"".join([head, *(_LENGTH.pack(len(n)) + n for n in names), self.more])

    def encode(self) -> bytes:
        """The bytes that L2 stores."""
        return self.front() + self.payload


def decode(data: bytes) -> Record:
    """The record in these bytes, or `CorruptRecord`, whatever they are."""
    if len(data) < HEAD.size:
        raise CorruptRecord("shorter than a record's head")
    magic, flags, codec, epoch, seq, version, created_ms, soft_ms, expires_ms, count, size = HEAD.unpack_from(data)
    if magic != MAGIC:
        raise CorruptRecord("not a record of this format")
    at = HEAD.size
    tags: Sequence[str] = ()
    if count:
        tags, at = _tags(data, at, count)
    more, at = data[at : at + size], at + size
    if at > len(data):
        raise CorruptRecord("it is cut off")
    return Record(
        flags, codec, data[at:], created_ms=created_ms, soft_ms=soft_ms, expires_ms=expires_ms, tags=tags, more=more,
        epoch=epoch, seq=seq, version=version,
    )  # fmt: skip


def _tags(data: bytes, at: int, count: int) -> tuple[list[str], int]:
    tags = []
    for _ in range(count):
        start = at + _LENGTH.size
        if start > len(data):
            raise CorruptRecord("its tags are cut off")
        at = start + _LENGTH.unpack_from(data, at)[0]
        if at > len(data):
            raise CorruptRecord("its tags are cut off")
        try:
            tags.append(data[start:at].decode())
        except UnicodeDecodeError:
            raise CorruptRecord("a tag is not UTF-8") from None
    return tags, at
