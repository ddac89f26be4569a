"""What L2 holds for a key: a fixed header that Lua can read, the tags, and the payload.

A record is its key's own: its check begins with the key's name, so that an answer that was meant for another question,
or that was damaged on its way, is none.

```
offset  bytes
0       2     magic 0xCB and format 2
2       1     flags: 1 = the source said "not found", 2 = made without the source, which had failed, 4 = the payload is
              encrypted
3       1     codec of the payload
4       16    epoch, hexadecimal digits
20      8     seq at which its fill lease was granted, or of its write (big-endian, like all numbers here)
28      8     hard expiry, ms on that clock; 0 = none (L2 may keep the record longer, for fail-safe)
36      4     check
40      4     version: random
44      8     created, ms on that clock: when its load began at the earliest, or its write was sent
52      8     soft expiry, ms on that clock; 0 = none
60      4     version of the policy by which the value was encoded
64      1     number of tags
65      2     bytes of `more`
67            for each tag: 2 bytes of length, its scope
...           more: a msgpack map of what else is to be said of the record, or nothing
...           payload
```
Times are the server's, which every probe relates to the node's monotonic clock: no two machines' clocks are compared.

The check is the CRC-32 of the key's name in L2 and of all from the version on, XOR the remainder of flags, codec, seq
and hard expiry, read as one number of 144 bits, by the prime 2^32 - 5: the scripts set the last two, and can turn the
check with them, but make no CRC. No two bits of that number have the same remainder, or such that cancel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from struct import Struct
from zlib import crc32

import msgspec

from cachebus.values.cipher import ValueCipher

MAGIC = b"\xcb\x02"
FLAG_NOT_FOUND = 1
FLAG_MAKESHIFT = 2
FLAG_ENCRYPTED = 4
FLAGS_AT = 2
VERSION = slice(40, 44)
COMPRESSED = 0x80
"""A codec of this or above has a compressed payload."""
HEADER = Struct(">2sH16sQQI4sQQIBH")
CHECKED_AT = 40
"""From here on the CRC goes over all."""
PRIME = 2**32 - 5
VERSION_BYTES = 4
_FRONT, _BACK = Struct(">2sH16sQQI"), Struct(">4sQQIBH")
Header = tuple[bytes, int, bytes, int, int, int, bytes, int, int, int, int, int]
"""Magic, kind (flags * 256 + codec), epoch, seq, hard expiry, check, version, created, soft expiry, the policy's
version, tags, `more`."""
_COPIED_MAX_BYTES = 4096
"""A slice of so many costs less than a view of them."""
_LENGTH = Struct(">H")
_BOUND = Struct(">HI")


class CorruptRecord(ValueError):
    """The bytes are not a record of this format, or not this key's."""


def _version() -> bytes:
    return os.urandom(VERSION_BYTES)


class Record(msgspec.Struct, eq=False):
    """One decoded record; `payload` is still encoded, and one that was read may be encrypted (`is_encrypted`)."""

    flags: int
    codec: int
    payload: bytes
    created_ms: int
    soft_ms: int = 0
    expires_ms: int = 0
    tags: Sequence[str] = ()
    more: bytes = b""
    """A msgpack map, or nothing; what a reader does not know in it, it passes over."""
    epoch: bytes = b"0" * 16
    seq: int = 0
    version: bytes = msgspec.field(default_factory=_version)
    policy_version: int = 1
    """By which version of its type's policy the value was encoded: of another, it is none."""
    cipher: ValueCipher | None = None
    """What encrypts the payload where it is written, as it lies here in the clear."""

    @property
    def not_found(self) -> bool:
        """Whether it says that the source has nothing for the key."""
        return bool(self.flags & FLAG_NOT_FOUND)

    @property
    def is_encrypted(self) -> bool:
        """Whether its payload is."""
        return bool(self.flags & FLAG_ENCRYPTED)

    def bound(self, name: str) -> bytes:
        """What an encrypted payload is bound to: how it is to be read, and the key of this name."""
        return _BOUND.pack((self.flags | FLAG_ENCRYPTED) << 8 | self.codec, self.policy_version) + name.encode()

    @property
    def may_be_fallback(self) -> bool:
        """Whether it may be given out past its expiry while the source fails: where it is what the source has said."""
        return not self.flags & (FLAG_NOT_FOUND | FLAG_MAKESHIFT)

    def set_position(self, epoch: bytes, seq: int, *, expires_ms: int = 0, created_ms: int | None = None) -> None:
        """Note where it stands in L2's history. And where that has turned out to be something else: when it expires
        there, and as of when the source has answered."""
        self.epoch, self.seq = epoch, seq
        self.expires_ms = expires_ms or self.expires_ms
        self.created_ms = self.created_ms if created_ms is None else created_ms

    def middle(self) -> bytes:
        """What lies between its check and its payload; raises what does not fit in there: `struct.error`,
        `UnicodeError`."""
        back = _BACK.pack(
            self.version, self.created_ms, self.soft_ms, self.policy_version, len(self.tags), len(self.more)
        )
        if not self.tags:
            return back + self.more
        names = [tag.encode() for tag in self.tags]
        return b"".join([back, *(_LENGTH.pack(len(n)) + n for n in names), self.more])

    def encode(self, name: str) -> bytes:
        """The bytes that L2 stores under the key of this name (`Key.l2`)."""
        middle, payload = self.middle(), self.payload
        kind = self.flags << 8 | self.codec
        if self.cipher is not None:
            kind |= FLAG_ENCRYPTED << 8
            payload = self.cipher.encrypt(payload, self.bound(name))
        # 2^64 leaves 25, 2^128 leaves 625.
        laid = (self.expires_ms + 25 * self.seq + 625 * kind) % PRIME
        check = crc32(payload, crc32(middle, crc32(name.encode()))) ^ laid
        front = _FRONT.pack(MAGIC, kind, self.epoch, self.seq, self.expires_ms, check)
        return b"".join([front, middle, payload])


def is_of(crc: int, data: bytes, header: Header) -> bool:
    """Whether a record with this header is whole, and that of the key whose name has this CRC-32 (`Key.crc`)."""
    laid = (header[4] + 25 * header[3] + 625 * header[1]) % PRIME
    checked = data[CHECKED_AT:] if len(data) <= _COPIED_MAX_BYTES else memoryview(data)[CHECKED_AT:]
    return crc32(checked, crc) ^ laid == header[5]


def decode(data: bytes, name: str) -> Record:
    """The record in these bytes, of the key of this name (`Key.l2`); or `CorruptRecord`, whatever they are."""
    header = _header(data)
    if not is_of(crc32(name.encode()), data, header):
        raise CorruptRecord("damaged, or of another key")
    return made(data, header)


def parse(data: bytes) -> Record:
    """As much as a script sees, which asks for no check: the record in these bytes, be it whole or not."""
    return made(data, _header(data))


def _header(data: bytes) -> Header:
    if len(data) < HEADER.size:
        raise CorruptRecord("shorter than a record's header")
    header: Header = HEADER.unpack_from(data)
    if header[0] != MAGIC:
        raise CorruptRecord("not a record of this format")
    return header


def made(data: bytes, header: Header) -> Record:
    """The record in these bytes, of which the header was read already; or `CorruptRecord`."""
    _, kind, epoch, seq, expires_ms, _, version, created_ms, soft_ms, policy_version, count, size = header
    tags: Sequence[str] = ()
    at, more = HEADER.size, b""
    if count:
        tags, at = _tags(data, at, count)
    if size:
        more, at = data[at : at + size], at + size
    if at > len(data):
        raise CorruptRecord("it is cut off")
    return Record(
        kind >> 8,
        kind & 0xFF,
        data[at:],
        created_ms=created_ms,
        soft_ms=soft_ms,
        expires_ms=expires_ms,
        tags=tags,
        more=more,
        epoch=epoch,
        seq=seq,
        version=version,
        policy_version=policy_version,
    )


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
