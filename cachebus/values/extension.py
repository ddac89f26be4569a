"""What the parts of the codec share: the numbers of the msgpack extensions, and what goes wrong.

The numbers are wire format: none is ever given another meaning.
"""

from __future__ import annotations

import json

from cachebus.errors import NotSerializable

BIG_INT, DATETIME, DATE, TIME, TIMEDELTA, UUID, DECIMAL, SET, FROZENSET, ARRAY, NUMPY_SCALAR = range(1, 12)

_KNOWN = frozenset(["builtins", "datetime", "decimal", "uuid"])
_SHOWN_MAX = 40
EXTRA = "extra"
"""In place of the name of an attribute that no type declares: it is data."""


class CorruptValue(ValueError):
    """The bytes are no value of this format, or the value does not fit the model asked for."""

    in_log = ""
    """As that of `NotSerializable`."""


class NotEncodable(Exception):
    """Something can't be encoded: a `NotSerializable` in the making. `path` says where, from the inside out;
    it grows while the walk unwinds."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []
        self.path_in_log: list[str] = []

    def inside(self, step: str, in_log: str = "") -> None:
        """Note that it lies in what this step leads to. `in_log`: what the log says of a step that names data."""
        self.path.append(step)
        self.path_in_log.append(in_log or step)

    def refusal(self) -> NotSerializable:
        """What callers are told, with the place."""
        refused = NotSerializable(f"value{''.join(reversed(self.path))} {self.reason}")
        refused.in_log = f"value{''.join(reversed(self.path_in_log))} {self.reason}"
        return refused


class Tagged:
    """An extension to be packed; unlike msgspec's own it is hashable, so it may be a key."""

    __slots__ = ("code", "data")

    def __init__(self, code: int, data: bytes) -> None:
        self.code = code
        self.data = data

    def __eq__(self, other: object) -> bool:
        return type(other) is Tagged and self.code == other.code and self.data == other.data

    def __hash__(self) -> int:
        return hash((self.code, self.data))


def shown(key: object) -> str:
    """A dict's key for messages: its beginning, or its type where it is an object with a mind of its own."""
    if isinstance(key, str):
        text = json.dumps(key, ensure_ascii=False)
    elif type(key).__module__ not in _KNOWN:
        return f"a {name_of(type(key))}"
    else:
        try:
            text = repr(key)
        except Exception:  # noqa: BLE001 (of what is in a tuple)
            return f"a {name_of(type(key))}"
    text = text.encode("utf-8", "backslashreplace").decode()  # else no log could take it
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."


def name_of(kind: type) -> str:
    """A type's name for messages."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
