"""Compressed batches, inflated within a bound: a few hundred bytes may stand for a gigabyte, and who may write to a
topic may write those.

The driver inflates a batch whole before it gives its first message. So it is given none that is compressed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

MOST_BYTES: Final = 4 * 1024 * 1024
"""The most that a batch of events may inflate to. Ours have a quarter of a megabyte, or one event that is larger."""
FIRST_ROOM_BYTES: Final = 64 * 1024
MORE_ROOM: Final = 8
"""The room that is tried first, where a codec needs all of its room at once, and how many times as much next."""
LEAST_BLOCK_BYTES: Final = 1024
"""What a block of snappy counts for, however small it is: else the number of blocks would have no bound."""
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4

_LENGTH_AT, _MAGIC_AT, _CHECK_AT, _ATTRIBUTES_AT, _BODY_AT = 8, 16, 17, 21, 61
_OVERHEAD = 12
"""Bytes before those that a batch's length counts."""
_LEGACY_ATTRIBUTES_AT = 17
_CODEC = 0b111
_XERIAL = b"\x82SNAPPY\0"
_XERIAL_BYTES = 16


class UnreadableBatch(ValueError):
    """A batch that can't be inflated, or may not be."""


def batches_in(data: bytes) -> Iterator[memoryview]:
    """The whole batches of a fetched partition. `UnreadableBatch` where there is none."""
    view, begin = memoryview(data), 0
    while len(view) - begin > _OVERHEAD:
        (length,) = struct.unpack_from(">i", view, begin + _LENGTH_AT)
        end = begin + _OVERHEAD + length
        if length <= _LEGACY_ATTRIBUTES_AT - _OVERHEAD:
            raise UnreadableBatch("a batch is damaged")
        if end > len(view):  # the rest of it did not fit
            return
        yield view[begin:end]
        begin = end


def codec_of(batch: memoryview) -> int:
    """The number of the codec; 0 for none."""
    modern = batch[_MAGIC_AT] >= 2 and len(batch) > _ATTRIBUTES_AT + 1
    return batch[_ATTRIBUTES_AT + 1 if modern else _LEGACY_ATTRIBUTES_AT] & _CODEC


def offset_of(batch: memoryview) -> int:
    """The offset of its first message."""
    return int.from_bytes(batch[:_LENGTH_AT], "big", signed=True)


def plain(batch: memoryview, most_bytes: int = MOST_BYTES) -> bytes:
    """A compressed batch as if it had never been compressed, but for its check; `UnreadableBatch`."""
    body = inflated(batch, most_bytes)
    head = bytearray(batch[:_BODY_AT])
    struct.pack_into(">i", head, _LENGTH_AT, _BODY_AT - _OVERHEAD + len(body))
    head[_ATTRIBUTES_AT + 1] &= ~_CODEC
    return bytes(head) + body


def spoiled(batch: memoryview) -> bytes:
    """The batch with another check, so that the driver refuses it before it inflates it."""
    copy, at = bytearray(batch), _CHECK_AT if batch[_MAGIC_AT] >= 2 else _OVERHEAD
    copy[at] ^= 0xFF
    return bytes(copy)


def inflated(batch: memoryview, most_bytes: int) -> bytes:
    """The messages of a compressed batch; `UnreadableBatch` where they have more bytes: no more are ever made."""
    codec = codec_of(batch)
    if batch[_MAGIC_AT] < 2:  # by no producer of the last ten years
        raise UnreadableBatch("a compressed batch of an old format")
    if len(batch) < _BODY_AT:
        raise UnreadableBatch("a batch is damaged")
    body = batch[_BODY_AT:]
    if codec == GZIP:
        return _gunzip(body, most_bytes)
    if codec not in (SNAPPY, LZ4, ZSTD):
        raise UnreadableBatch(f"a batch is compressed by codec {codec}, which is not known")
    try:
        import cramjam
    except ImportError as error:
        raise UnreadableBatch("a batch is compressed: pip install cramjam") from error
    try:
        if codec == SNAPPY:
            return _unsnap(cramjam.snappy, body, most_bytes)
        return _with_room(cramjam.lz4 if codec == LZ4 else cramjam.zstd, body, most_bytes)
    except cramjam.DecompressionError as error:
        raise UnreadableBatch(f"a batch is damaged, or inflates to more than {most_bytes} bytes: {error}") from error


def _gunzip(body: memoryview, most_bytes: int) -> bytes:
    inflator = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        data = inflator.decompress(body, most_bytes + 1)
    except zlib.error as error:
        raise UnreadableBatch(f"a batch is damaged: {error}") from error
    if len(data) > most_bytes:
        raise _too_large(most_bytes)
    if not inflator.eof or inflator.unused_data:  # several files cost time, and no producer writes them
        raise UnreadableBatch("a batch is damaged: it is not one file of gzip")
    return data


def _unsnap(snappy: Any, body: memoryview, most_bytes: int) -> bytes:
    """Each block says how large it gets, and gets no larger."""
    parts, left_bytes = list[bytes](), most_bytes
    for block in _blocks(body):
        size_bytes = snappy.decompress_raw_len(block)
        if size_bytes > left_bytes:
            raise _too_large(most_bytes)
        parts.append(bytes(snappy.decompress_raw(block)))
        left_bytes -= max(LEAST_BLOCK_BYTES, size_bytes)
    return b"".join(parts)


def _blocks(body: memoryview) -> Iterator[bytes]:
    """Of snappy: one that is all, or, as Java has them, each behind its length."""
    if bytes(body[: len(_XERIAL)]) != _XERIAL:
        yield bytes(body)
        return
    begin = _XERIAL_BYTES
    while begin < len(body):
        size_bytes = int.from_bytes(body[begin : begin + 4], "big")
        begin += 4
        if not 0 < size_bytes <= len(body) - begin:
            raise UnreadableBatch("a batch is damaged: a block of it is cut")
        yield bytes(body[begin : begin + size_bytes])
        begin += size_bytes


def _with_room(codec: Any, body: memoryview, most_bytes: int) -> bytes:
    """What does not fit is not made."""
    room_bytes = FIRST_ROOM_BYTES
    while room_bytes < most_bytes:
        room = bytearray(room_bytes)
        with suppress(Exception):  # of too little room, or of damage: the last try tells
            return bytes(room[: codec.decompress_into(body, room)])
        room_bytes *= MORE_ROOM
    room = bytearray(most_bytes)
    return bytes(room[: codec.decompress_into(body, room)])


def _too_large(most_bytes: int) -> UnreadableBatch:
    return UnreadableBatch(f"a batch inflates to more than {most_bytes} bytes")
