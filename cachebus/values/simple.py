"""Values without parts that msgpack has no type for, or whose subclasses it would not know: there and back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from struct import Struct
from typing import Any
from uuid import UUID

from cachebus.values import extension as ext
from cachebus.values.extension import NotEncodable, Tagged, name_of

_TIMEDELTA = Struct(">iII")
_FOLDED = "f"


def _int(value: int) -> int | Tagged:
    if -(2**63) <= value < 2**64:
        return int.__int__(value)
    return Tagged(ext.BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _str(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NotEncodable("is a str with a lone surrogate, which is not valid Unicode") from None
    return str.__str__(value)


def _temporal(code: int, base: type, read: Callable[[str], Any]) -> Callable[[Any], Tagged]:
    def tagged(value: Any) -> Tagged:
        if getattr(value, "tzinfo", None) is not None:
            offset = value.utcoffset()
            if offset is None or offset.microseconds:  # the standard library does not read the latter back
                raise NotEncodable(f"is a {base.__name__} in a zone that has no offset of whole seconds")
        text = value.isoformat()
        if type(value) is not base and not reads_back(text):
            raise NotEncodable(f"is of type {name_of(type(value))}, which the codec can't carry without loss")
        folded = base is not date and value.fold
        return Tagged(code, (text + _FOLDED if folded else text).encode())

    def reads_back(text: str) -> bool:
        """False for a subclass that has finer units than its base, or members that are no time at all."""
        try:
            return bool(read(text).isoformat() == text)
        except ValueError:
            return False

    return tagged


def _timedelta(value: timedelta) -> Tagged:
    if type(value) is not timedelta and getattr(value, "nanoseconds", False):
        raise NotEncodable(f"is of type {name_of(type(value))} with nanoseconds, which the codec can't carry")
    return Tagged(ext.TIMEDELTA, _TIMEDELTA.pack(value.days, value.seconds, value.microseconds))


def _read_datetime(text: str) -> datetime:
    if text.endswith(_FOLDED):
        return datetime.fromisoformat(text[:-1]).replace(fold=1)
    return datetime.fromisoformat(text)


def _read_time(text: str) -> time:
    if text.endswith(_FOLDED):
        return time.fromisoformat(text[:-1]).replace(fold=1)
    return time.fromisoformat(text)


def _read_timedelta(data: memoryview) -> timedelta:
    days, seconds, microseconds = _TIMEDELTA.unpack(data)
    return timedelta(days, seconds, microseconds)


WRITERS: dict[type, Callable[[Any], Any]] = {
    datetime: _temporal(ext.DATETIME, datetime, _read_datetime),  # before date, whose subclass it is
    date: _temporal(ext.DATE, date, date.fromisoformat),
    time: _temporal(ext.TIME, time, _read_time),
    timedelta: _timedelta,
    UUID: lambda value: Tagged(ext.UUID, value.bytes),
    Decimal: lambda value: Tagged(ext.DECIMAL, Decimal.__str__(value).encode()),
    int: _int,
    str: _str,
    float: float.__float__,
    bytes: lambda value: bytes(memoryview(value)),
    bytearray: bytes,
    memoryview: bytes,
}
"""By type: what gives the thing that msgspec packs. May raise `NotEncodable`."""

READERS: dict[int, Callable[[memoryview], object]] = {
    ext.BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
    ext.DATETIME: lambda data: _read_datetime(str(data, "ascii")),
    ext.DATE: lambda data: date.fromisoformat(str(data, "ascii")),
    ext.TIME: lambda data: _read_time(str(data, "ascii")),
    ext.TIMEDELTA: _read_timedelta,
    ext.UUID: lambda data: UUID(bytes=bytes(data)),
    ext.DECIMAL: lambda data: Decimal(str(data, "ascii")),
}
"""By extension number: what gives the value again. Damaged data makes them raise anything."""
