"""What a new node asks of a live one, and is told: the names of its hot keys, as they travel.

The front is that of `wire.inquiry`, with other letters, the question's flags always 0:

| letters | what | body, in msgpack |
|---|---|---|
| `CBH` | a question to one node | `[answerer, asker, most names, most bytes, more]` |
| `CBN` | a piece of its answer | a map: `node`, `part` of `parts`, `names` from the hottest on, `sizes` |

No value travels: who asks reads what L2 has under the names, as for any other read. A size is what the entry takes in
the answerer's memory, and no more than a hint. A reader passes over what it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from cachebus.wire.inquiry import CorruptInquiry, body_of, framed, new_id

HOT_QUESTION: Final = b"CBH"
HOT_NAMES: Final = b"CBN"
PIECE_BYTES: Final = 32_768
"""No piece is larger; one that is, is passed over unread."""
FULL_BYTES: Final = 16_384
"""With names of so many bytes a piece is full."""
PARTS_MAX: Final = 65_536
_NAME_BYTES: Final = 8
"""What a name and its size take beside the name's own bytes, at most."""


class HotKey(NamedTuple):
    """A key that is read often: its L1 name, and what its entry takes, in bytes."""

    l1: str
    size_bytes: int


class HotQuestion(NamedTuple):
    """Which keys are hot on one node?"""

    id: bytes
    answerer: str
    """The id of the node that is asked."""
    asker: str
    most_names: int
    most_bytes: int
    """What all of the values are to take at most, by the answerer's sizes."""

    @classmethod
    def to(cls, answerer: str, asker: str, most_names: int, most_bytes: int) -> HotQuestion:
        """A new one."""
        return cls(new_id(), answerer, asker, most_names, most_bytes)

    def encode(self) -> bytes:
        """Its bytes."""
        return framed(HOT_QUESTION, 0, self.id, _encode([*self[1:], {}]))


class HotPiece(msgspec.Struct, frozen=True):
    """A piece of an answer."""

    node: str
    """The id of who answers."""
    part: int
    """From 0."""
    parts: int
    """How many there are; one at least."""
    names: list[str]
    sizes: list[int]
    """Of each name."""

    def encode(self, question: bytes) -> bytes:
        """Its bytes, in answer to the question with this id."""
        return framed(HOT_NAMES, 0, question, _encode(self))


_encode = msgspec.msgpack.encode
_decode_list = msgspec.msgpack.Decoder(list[Any]).decode
_decode_piece = msgspec.msgpack.Decoder(HotPiece).decode


def pieces_of(node: str, hot: Sequence[HotKey]) -> list[HotPiece]:
    """An answer in pieces, the hottest keys first; one without names where there are none."""
    cut = [0]
    filled_bytes = 0
    for at, key in enumerate(hot):
        own_bytes = len(key.l1.encode()) + _NAME_BYTES
        if filled_bytes + own_bytes > FULL_BYTES and at > cut[-1]:
            cut.append(at)
            filled_bytes = 0
        filled_bytes += own_bytes
    parts = [hot[begin:end] for begin, end in zip(cut, [*cut[1:], len(hot)], strict=True)]
    return [
        HotPiece(node, number, len(parts), [key.l1 for key in part], [key.size_bytes for key in part])
        for number, part in enumerate(parts)
    ]


def decode_hot_question(data: bytes) -> HotQuestion:
    """The question in these bytes, or `CorruptInquiry`, whatever they are."""
    _, of, body = body_of(HOT_QUESTION, data)
    try:
        answerer, asker, most_names, most_bytes, *_ = _decode_list(body)
    except _UNREADABLE as error:
        raise CorruptInquiry(str(error)) from None
    texts, numbers = (type(answerer), type(asker)), (type(most_names), type(most_bytes))
    if texts != (str, str) or numbers != (int, int) or min(most_names, most_bytes) < 0:
        raise CorruptInquiry("it asks nobody for anything")
    return HotQuestion(of, answerer, asker, most_names, most_bytes)


def decode_hot_piece(data: bytes) -> HotPiece:
    """The piece in these bytes, or `CorruptInquiry`, whatever they are."""
    _, _, body = body_of(HOT_NAMES, data, PIECE_BYTES)
    try:
        piece = _decode_piece(body)
    except _UNREADABLE as error:
        raise CorruptInquiry(str(error)) from None
    fits = 0 <= piece.part < piece.parts <= PARTS_MAX and len(piece.names) == len(piece.sizes)
    if not fits or any(size < 0 for size in piece.sizes):
        raise CorruptInquiry("it is no piece of anything")
    return piece


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)
