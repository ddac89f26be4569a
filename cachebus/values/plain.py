"""Whether msgpack alone carries a value without loss; found at the speed of C, since every fill and set asks.

msgspec packs a UUID, a Decimal or a naive datetime as a mere str and a set as a list, and says nothing. So the types
in a value are looked at after it was packed, one level of nesting at a time.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from gc import get_referents
from itertools import chain
from typing import Any
from uuid import UUID

import msgspec

DEPTH_MAX = 100
"""Levels of nesting in a value. Well below what the decoder can take, so that what was stored can be read back."""
SCALARS: frozenset[type] = frozenset([str, int, float, bool, type(None), bytes])
UNCHANGING = SCALARS | {datetime, date, time, timedelta, UUID, Decimal}
"""What all callers may share, whatever they do with it."""

# What a container refers to is what it holds: a list's items, a dict's values, and its keys too unless all of them are
# exactly str (such a dict has a table of its own kind, which needs no visit). One call in C for a whole level. But from
# Python 3.13 on the `vars()` of a living object refers to nothing, as the object does so itself. So what is given for
# containers is counted; and where Python does that, many dicts are asked for their values, since the keys that another
# one gives would make up for what is missing.
_contents = get_referents
CONTAINERS: frozenset[type] = frozenset([dict, list, tuple])
_PLAIN = SCALARS | CONTAINERS
_LONG = 32
_FLOAT64 = b"\xcb"
_pack = msgspec.msgpack.Encoder().encode


class _Living:
    def __init__(self) -> None:
        self.one = 1


_living = _Living()
_complete = len(get_referents(vars(_living))) == 1 and len(get_referents({"a": 1, "b": 2.0}, [3, "c"], {4: 5})) == 6


def is_plain(value: Any, payload: bytes) -> bool:
    """Whether a value that msgspec packed as `payload` comes back from it with equal types and values.

    It was packed before, so it has no cycle, and the payload's size bounds this search.
    """
    kind = type(value)
    if kind not in CONTAINERS:
        return kind in SCALARS
    if len(value) < _LONG:
        return _small(value, 1)
    return (kind is not dict and _uniform(value, payload)) or _large([value], 0)


def _small(holder: Any, depth: int) -> bool:
    """One by one, since that is the fastest way for few."""
    items = _contents(holder)
    if len(items) < len(holder):
        return False
    for item in items:
        kind = type(item)
        if kind not in SCALARS:
            if kind not in CONTAINERS or depth >= DEPTH_MAX:
                return False
            if len(item) < _LONG:
                if not _small(item, depth + 1):
                    return False
            elif (kind is dict or not _uniform(item, None)) and not _large([item], depth):
                return False
    return True


def _large(holders: list[Any], depth: int) -> bool:
    """A whole level of nesting at a time, however many containers it is spread over."""
    while True:
        items = _contents(*holders) if _complete else _asked(holders)
        if len(items) < sum(map(len, holders)):
            return False
        kinds = set(map(type, items))
        if kinds <= SCALARS:
            return True
        depth += 1
        if not kinds <= _PLAIN or depth >= DEPTH_MAX:
            return False
        holders = items if kinds <= CONTAINERS else [item for item in items if type(item) in CONTAINERS]
        if list in kinds or tuple in kinds:
            holders = [i for i in holders if len(i) < _LONG or type(i) is dict or not _uniform(i, None)]


def _asked(holders: list[Any]) -> list[Any]:
    """What containers hold, a dict's keys too, by asking each."""
    dicts = [holder for holder in holders if type(holder) is dict]
    items = [*chain.from_iterable(holders)]  # of a dict its keys
    items += chain.from_iterable(map(dict.values, dicts))
    return items


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
