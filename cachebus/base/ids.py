"""What an id is, and the text that stands for it. Whoever writes an id into a name asks here, and nowhere else.

An id is a str, an int or a UUID. It counts by what it holds, never by what it says of itself: an object whose
`__str__`, `__format__` or `__class__` gives another tenant's id would otherwise reach that tenant's entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import TypeVar
from uuid import UUID

from cachebus.errors import InvalidKey

Id = str | int | UUID
"""What may be given as an id. In a key it is the text that stands for it."""
PART_MAX_BYTES = 512

T = TypeVar("T")

_INT_END = 10**PART_MAX_BYTES
_INT_LEAST = -_INT_END // 10
_control = re.compile("[\x00-\x1f\x7f-\x9f]").search


def text_of(name: str, value: object) -> str:
    """The text that stands for an id; `InvalidKey` names what is none: a bool, None, any other type, a huge int.

    Subclasses count by what they hold: a str (so a str Enum) by its characters, an int by its digits.
    """
    kind = type(value)  # the one answer that an object can't make up
    if kind is str:
        return value  # type: ignore[return-value]
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int) and kind is not bool:
        number = int.__int__(value)  # type: ignore[arg-type]
        if not _INT_LEAST < number < _INT_END:
            bits = number.bit_length()
            raise InvalidKey(f"{name} is too long: an int of {bits} bits, at most {PART_MAX_BYTES} digits")
        return int.__repr__(number)
    if issubclass(kind, UUID):
        return UUID.__str__(value)
    raise InvalidKey(f"{name} must be str, int or UUID, not {kind.__name__}")


def check_part(name: str, part: object) -> str:
    """The text of a part of a key, or `InvalidKey` that names it: 1 to 512 UTF-8 bytes, no control characters."""
    text = text_of(name, part)
    if not text:
        raise InvalidKey(f"{name} is empty")
    try:  # not by `is_unicode`, which would encode it twice
        size_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise InvalidKey(f"{name} is not valid Unicode: it has a lone surrogate") from None
    if size_bytes > PART_MAX_BYTES:
        raise InvalidKey(f"{name} is too long: {size_bytes} bytes, at most {PART_MAX_BYTES}")
    if not text.isprintable() and (found := _control(text)):  # what is printable has none, and that is quicker to see
        raise InvalidKey(f"{name} has a control character ({found.group()!r})")
    return text


def several(name: str, given: Iterable[T], *, at_most: int | None = None) -> list[T]:
    """What is given where several are asked for, the first `at_most` of it; `ValueError` for a text, whose characters
    nobody means."""
    if isinstance(given, str | bytes | bytearray):
        raise ValueError(f"{name} must be several, as a list, not a single {type(given).__name__}")
    return list(islice(given, at_most))
