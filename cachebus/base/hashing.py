"""Resource ids made of values: a canonical encoding of them, hashed.

Each value, at every level, is packed as an array: [name of its type, value] where msgpack has that very type, else
[kind, name of its type, content]. So what differs in type differs in its hash: a tuple and a list of the same items, a
UUID and its text, a str and an instance of its subclass. The name is that of the class without its module, so that a
class may move without its ids changing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import msgspec

from cachebus.errors import NotSerializable

DEPTH_MAX: Final = 100
"""Levels of nesting in a part."""

_NATIVE: Final = frozenset([type(None), bool, int, float, str, bytes])
_Content = Callable[[Any, int], Any]
_pack = msgspec.msgpack.Encoder().encode


def generate_resource_id_hash(*parts: object) -> str:
    """A stable resource id (32 hex digits) for any plain values: the same in every process and version.

    Parts: None, bool, int, float, str, bytes, bytearray, list, tuple, set, frozenset, mappings, datetime, date, time,
    timedelta, UUID, Decimal, enum members, dataclasses, msgspec Structs and attrs classes, nested up to 100 levels.
    Their types count at every level, by name: `1`, `"1"`, `1.0` and `True` differ, so do `(1,)` and `[1]`, and an
    instance of a subclass from its plain value. Mappings, sets and fields are hashed without regard to their order.
    `NotSerializable` for other things, and for what holds itself.
    """
    try:
        data = _pack([_node(part, 0) for part in parts])
    except (TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise NotSerializable(f"a part can't be hashed: {error}") from None
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _node(value: Any, depth: int) -> list[Any]:
    """What is packed for a value."""
    if depth > DEPTH_MAX:
        raise ValueError(f"it is nested more than {DEPTH_MAX} levels deep, or holds itself")
    kind: Any = type(value)
    if kind in _NATIVE and (kind is not int or -(2**63) <= value < 2**64):
        return [kind.__name__, value]
    code, content = _how(kind)
    return [code, kind.__qualname__, content(value, depth + 1)]


@lru_cache(maxsize=1024)
def _how(kind: Any) -> tuple[str, _Content]:
    """The kind of values of a type, and what gives the content of one; `TypeError` where there is none."""
    for base, code, content in _KINDS:
        if issubclass(kind, base):
            return code, content
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    elif issubclass(kind, msgspec.Struct):
        names = list(kind.__struct_fields__)
    elif hasattr(kind, "__attrs_attrs__"):
        names = [attribute.name for attribute in kind.__attrs_attrs__]
    else:
        raise TypeError(f"it is, or holds, an object of type {kind.__qualname__}")
    return "fields", lambda value, depth: [[name, _node(getattr(value, name), depth)] for name in sorted(names)]


def _int(value: int, _depth: int) -> bytes:
    number = int.__int__(value)
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def _ordered(value: Any, depth: int) -> list[Any]:
    items = list.__iter__(value) if isinstance(value, list) else tuple.__iter__(value)
    return [_node(item, depth) for item in items]


def _unordered(value: Any, depth: int) -> list[bytes]:
    return sorted(_pack(_node(item, depth)) for item in value)


def _mapping(value: Mapping[Any, Any], depth: int) -> list[bytes]:
    return sorted(_pack([_node(key, depth), _node(item, depth)]) for key, item in value.items())


def _moment(value: datetime | time, _depth: int) -> list[Any]:
    text = datetime.isoformat(value) if isinstance(value, datetime) else time.isoformat(value)
    return [text, value.fold]


def _decimal(value: Decimal, _depth: int) -> list[Any]:
    # Not its text: that depends on the thread's decimal context.
    sign, digits, exponent = Decimal.as_tuple(value)
    return [sign, "".join(map(str, digits)), exponent]


_KINDS: Final[tuple[tuple[Any, str, _Content], ...]] = (
    (Enum, "enum", lambda value, depth: _node(value.value, depth)),  # before str and int, which a member may be too
    (int, "int", _int),
    (float, "float", lambda value, depth: float.__float__(value)),
    (str, "str", lambda value, depth: str.__str__(value)),
    ((bytes, bytearray, memoryview), "bytes", lambda value, depth: bytes(memoryview(value))),
    ((list, tuple), "items", _ordered),
    ((set, frozenset), "set", _unordered),
    (Mapping, "mapping", _mapping),
    ((datetime, time), "moment", _moment),  # before date, of which datetime is one
    (date, "date", lambda value, depth: date.isoformat(value)),
    (timedelta, "timedelta", lambda value, depth: [value.days, value.seconds, value.microseconds]),
    (UUID, "uuid", lambda value, depth: UUID.__str__(value)),
    (Decimal, "decimal", _decimal),
)
