"""A question about one key to all nodes of a shard, and a node's answer, as they travel.

```
offset  bytes
0       3     "CBQ" a question, "CBA" an answer
3       1     flags of a question: 1 = it came, and is to be answered, by SPUBLISH. 0 in an answer
4       16    the question's id: random hexadecimal digits, in an answer the same
20      4     CRC-32 of bytes 3 to 19 and of the body
24            body: msgpack, of a question [the key's L1 name, more], of an answer a map
```
They tell names and numbers, never a value. Nothing is decided by them: a node believes no event because of one, and a
reader passes over what it does not know, in `more` as in the map.
"""

from __future__ import annotations

import secrets
from struct import Struct
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

QUESTION: Final = b"CBQ"
ANSWER: Final = b"CBA"
SHARDED: Final = 1
MOST_BYTES: Final = 4096
"""No message of either kind is larger; one that is, is passed over unread."""
ID_BYTES: Final = 16
_FRONT = Struct(">3sB16sI")
_CHECKED = slice(3, 20)


class CorruptInquiry(ValueError):
    """The bytes are no question, or no answer, of this format."""


class Inquiry(NamedTuple):
    """A question: who has what of the key with this L1 name?"""

    id: bytes
    l1: str
    sharded: bool = False
    """Whether it travels by sharded pub/sub."""

    @classmethod
    def about(cls, l1: str, *, sharded: bool = False) -> Inquiry:
        """A new one."""
        return cls(new_id(), l1, sharded)

    def encode(self) -> bytes:
        """Its bytes."""
        return framed(QUESTION, SHARDED if self.sharded else 0, self.id, _encode([self.l1, {}]))


class NodeAnswer(msgspec.Struct, omit_defaults=True, frozen=True):
    """What one node says. Times are what is left, in ms on its own clock when it answered; -1 stands for ever."""

    node: str
    """Its id."""
    epoch: str = ""
    applied: int = 0
    highest_seq: int = msgspec.field(default=0, name="head")
    bound_ms: int = 0
    """Its staleness bound."""
    lease_ms: int = 0
    """What is left of the shard's lease; 0: it has none."""
    holds: str = ""
    """"value", "not_found" where the source said so, "absent" where L2 had nothing; "" for no entry."""
    seq: int = 0
    """Of what it holds."""
    version: str = ""
    """The same record's version in L2, where that is known: 8 hexadecimal digits."""
    why_not: str = ""
    """Why it does not serve what it holds: "replaced", "expired", "no_lease"."""
    serves_ms: int = 0
    """For how long it may serve what it holds, unless a probe renews its lease."""
    expires_ms: int = 0
    """What is left of its life, whatever the lease."""
    fallback_ms: int = 0
    """For how long it may be given, once it has expired, while the source fails."""
    fast: bool = False
    """Whether a read takes the hit path now."""
    soft: bool = False
    """Whether the soft expiry is over: the next read has it loaded anew."""
    alone: bool = False
    """Whether L2 has not confirmed it: this node has loaded it for itself."""
    blocked: bool = False
    """Whether an invalidation of it waits on this node for L2."""

    def encode(self, question: bytes) -> bytes:
        """Its bytes, as the answer to the question with this id."""
        return framed(ANSWER, 0, question, _encode(self))


_encode = msgspec.msgpack.encode
_decode_list = msgspec.msgpack.Decoder(list[Any]).decode
_decode_answer = msgspec.msgpack.Decoder(NodeAnswer).decode


def framed(kind: bytes, flags: int, of: bytes, body: bytes) -> bytes:
    """The bytes of a message of this kind, of or about the question with this id."""
    front = _FRONT.pack(kind, flags, of, 0)[_CHECKED]
    return _FRONT.pack(kind, flags, of, crc32(body, crc32(front))) + body


def new_id() -> bytes:
    """The id of a new question."""
    return secrets.token_hex(ID_BYTES // 2).encode()


def channel_of_answers(channel: str, question: str) -> str:
    """Beside a shard's channel: where the answers to the question with this id go over pub/sub. Whoever does not ask
    hears none of them."""
    return f"{channel}:{question}"


def id_of(data: bytes) -> bytes:
    """The question's id, as it stands in bytes that need not be one."""
    return data[4:20]


def body_of(kind: bytes, data: bytes, most_bytes: int = MOST_BYTES) -> tuple[int, bytes, bytes]:
    """Flags, id and body of a message of this kind; `CorruptInquiry` for any other bytes."""
    if not _FRONT.size < len(data) <= most_bytes:
        raise CorruptInquiry("too short or too long")
    found, flags, of, crc = _FRONT.unpack_from(data)
    body = data[_FRONT.size :]
    if found != kind or crc32(body, crc32(data[_CHECKED])) != crc or not _is_id(of):
        raise CorruptInquiry("not of this kind, or damaged")
    return flags, of, body


def _is_id(of: bytes) -> bool:
    return all(digit in b"0123456789abcdef" for digit in of)


def decode_question(data: bytes) -> Inquiry:
    """The question in these bytes, or `CorruptInquiry`, whatever they are."""
    flags, of, body = body_of(QUESTION, data)
    try:
        l1, *_ = _decode_list(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise CorruptInquiry(str(error)) from None
    if type(l1) is not str:
        raise CorruptInquiry("it names no key")
    return Inquiry(of, l1, bool(flags & SHARDED))


def decode_answer(data: bytes) -> NodeAnswer:
    """The answer in these bytes, or `CorruptInquiry`, whatever they are."""
    _, _, body = body_of(ANSWER, data)
    try:
        return _decode_answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptInquiry(str(error)) from None
