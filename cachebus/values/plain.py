"""Whether msgpack alone carries a value without loss; found at the speed of C, since every fill and set asks.

msgspec packs a UUID, a Decimal or a naive datetime as a mere str and a set as a list, and says nothing. So the types
in a value are looked at after it was packed, one level of nesting at a time.
"""

from __future__ import annotations

from gc import get_referents
from typing import Any

import msgspec

DEPTH_MAX = 100
"""Levels of nesting in a value. Well below what the decoder can take, so that what was stored can be read back."""
SCALARS: frozenset[type] = frozenset([str, int, float, bool, type(None), bytes])
CONTAINERS = frozenset([dict, list, tuple])
_LONG = 32
_FLOAT64 = b"\xcb"
_pack = msgspec.msgpack.Encoder().encode

# What a container refers to is what it holds: a list's items, a dict's values, and its keys too unless all of them are
# exactly str (such a dict has a table of its own kind, which needs no visit). One call in C for a whole level.
_referents_are_contents = len(get_referents({"a": 1, "b": 2.0}, [3, "c"], {4: 5})) == 6


def is_plain(value: object, payload: bytes) -> bool:
    """Whether a dict, list or tuple, which msgspec packed as `payload`, comes back from it with equal types and values.

    It was packed before, so it has no cycle, and its size bounds this search.
    """
    kind = type(value)
    if kind not in CONTAINERS or not _referents_are_contents:
        return False
    if kind is not dict and len(value) >= _LONG and _uniform(value, payload):  # type: ignore[arg-type]
        return True
    contents = get_referents(value)
    for _ in range(DEPTH_MAX):
        deeper = []
        for item in contents:
            kind = type(item)
            if kind not in SCALARS:
                if kind not in CONTAINERS:
                    return False
                if kind is dict or len(item) < _LONG or not _uniform(item, None):
                    deeper.append(item)
        if not deeper:
            return True
        contents = get_referents(*deeper)
    return False


def _uniform(items: Any, payload: bytes | None) -> bool:
    """Whether a long list or tuple holds scalars of one type only; False when it has to be looked at one by one."""
    kind = type(items[0])
    if kind is float:
        # A packed float64 is nine bytes that begin with 0xCB. If that byte stands wherever a float must begin, then by
        # induction every item is one. Several times faster than asking each for its type.
        data = _pack(items) if payload is None else payload
        head = 3 if len(items) < 1 << 16 else 5
        return len(data) == head + 9 * len(items) and data[head::9] == _FLOAT64 * len(items)
    if kind is str:
        try:
            "".join(items)
        except TypeError:
            return False
        return True
    kinds = [*map(type, items)]
    return kind in SCALARS and kinds.count(kind) == len(kinds)
