"""What a value takes in memory, found by looking into few.

The length of a payload tells little: of a list of small dicts it is a fortieth of what they take once they are
decoded, and of compressed text less. To look into every value would cost more than to decode it. So sizes are learnt as
a ratio to the payload's length, by data type, class and rough length. A value is looked into with a probability that
grows with its size, so that what nobody has looked into never adds up to much of L1's bound.

A look counts every container and model; only of strings and numbers, which take what they were encoded in or little
more, it samples. A sample of all parts would be right on average and wrong for the bound: L1 refuses what is said to be
too large, so of values with few heavy parts it would keep just those whose heavy parts the sample has missed. For the
same reason a value that may turn out too large is always looked into.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from datetime import UTC, datetime, time
from enum import Enum
from functools import lru_cache
from gc import get_referents
from itertools import chain
from math import inf
from sys import getrefcount, getsizeof
from types import FunctionType, ModuleType
from typing import Any
from uuid import UUID

LARGEST_PART = 8
"""A value of more than this part of L1's bound is not kept."""
LOOKS = 256
"""About so many values are looked into while all of L1 is replaced once."""
_SAMPLE = 512
"""So many strings, numbers and keys are looked at on one level of nesting."""
_NODES = 16
"""How many parts of an object of an unknown class are looked at on one level."""
_LEARNT_MAX = 1 << 14
_DOWN, _UP = 1 / 32, 1 / 4
"""How much of a ratio a look replaces. Memory that was taken unseen is worse than some that was left unused."""
_HEAVIEST = 72
"""Bytes in memory for one that was encoded: an empty dict, and its place in a list."""
_SHARED_INTS = range(-5, 257)
_ALLOCATION = 15  # CPython hands out memory in sixteens
_LIST_BYTES, _UUID_BYTES, _ZONE_BYTES = 64, 48, 112
_ATTRIBUTES_BYTES = 320
"""What an object with attributes has beside itself: CPython makes room for thirty, until enough were made in Python."""
_DEPTH_MAX, _STRANGE = 100, 50
_UNKNOWN = 10
_NONE_OF_ITS_OWN = (type, Enum, FunctionType, ModuleType)

_random = random.random


class Weights:
    """Estimates of what values take in memory, for an L1 of `max_bytes`."""

    __slots__ = ("_always_bytes", "_largest_bytes", "_learnt")

    def __init__(self, max_bytes: int) -> None:
        self._always_bytes = max(1, max_bytes // LOOKS)
        self._largest_bytes = max_bytes // LARGEST_PART
        self._learnt: dict[tuple[str, type, int], float] = {}

    def of(self, data_type: str, value: object, encoded_bytes: int, *, compressed: bool = False) -> int:
        """About how many bytes the value takes. `encoded_bytes` is the length of the payload that it was decoded from;
        of a `compressed` one that says nothing."""
        kind = type(value)
        if kind in _FLAT:
            return _flat(value, kind)
        if not compressed and encoded_bytes * _HEAVIEST <= self._largest_bytes:
            found = self._learnt.get((data_type, kind, encoded_bytes.bit_length()))
            if found is not None:
                size = found * encoded_bytes
                if _random() * self._always_bytes >= size:
                    return int(size)
        try:
            size = weigh(value, encoded_bytes, self._largest_bytes)
        except Exception:  # noqa: BLE001 (of a class that has a mind of its own)
            size = _UNKNOWN * encoded_bytes
        if not compressed:
            self._learn((data_type, kind, encoded_bytes.bit_length()), size / max(1, encoded_bytes))
        return int(size)

    def again(self, value: object, said_bytes: int) -> int:
        """About how many bytes a value takes of which `of` has said so; 0 where it has looked into the value anyway."""
        if type(value) in _FLAT or said_bytes > self._always_bytes:
            return 0
        try:
            return int(weigh(value, 0, self._largest_bytes))
        except Exception:  # noqa: BLE001 (of a class that has a mind of its own)
            return 0

    def _learn(self, about: tuple[str, type, int], ratio: float) -> None:
        if len(self._learnt) >= _LEARNT_MAX and about not in self._learnt:
            self._learnt.clear()
        mean = self._learnt.get(about, ratio)
        self._learnt[about] = mean + (ratio - mean) * (_UP if ratio > mean else _DOWN)


def weigh(value: Any, encoded_bytes: int = 0, enough_bytes: float = inf) -> float:
    """About how many bytes a value takes whose payload has `encoded_bytes`; what is shared with others is not counted,
    nor what lies deeper than values do. Past `enough_bytes` it stops counting."""
    flat = held = 0.0
    todo: list[tuple[list[Any], int, float]] = [([value], 0, 1.0)]
    while todo and flat + held <= enough_bytes:
        items, depth, times = todo.pop()
        if depth >= _STRANGE and len(items) > _NODES:  # it may know the whole program
            thinned = _sample(items, _NODES)
            items, times = thinned, times * len(items) / len(thinned)
        kinds = set(map(type, items))
        parts: list[Any] = []
        strange: list[Any] = []
        remaining = len(items)
        for kind in kinds - _FLAT:
            alike = items if len(kinds) == 1 else [item for item in items if type(item) is kind]
            remaining -= len(alike)
            held += times * _holders(kind, alike, parts, strange)
        if remaining:
            flat += times * _flats(items, remaining)
        todo += [
            (more, at, times)
            for more, at in ((parts, depth + 1), (strange, depth + _STRANGE))
            if more and at < _DEPTH_MAX
        ]
    # A long string among many that are short may be missed, and is at least as large as it was encoded.
    return held + max(flat, encoded_bytes)


def _flat(value: Any, kind: type) -> int:
    if kind is bool or value is None or (kind is int and value in _SHARED_INTS):
        return 0
    return _allocated(value)


def _allocated(value: object) -> int:
    return getsizeof(value) + _ALLOCATION & ~_ALLOCATION


def _sample(items: list[Any], most: int) -> list[Any]:
    step = len(items) // most
    return items if step < 2 else items[random.randrange(step) :: step]


def _flats(items: list[Any], count: int) -> float:
    """What `count` strings and numbers take that are among the items."""
    sizes = [_flat(item, type(item)) for item in _sample(items, _SAMPLE) if type(item) in _FLAT]
    return sum(sizes) * count / max(1, len(sizes))


def _holders(kind: type, items: list[Any], parts: list[Any], strange: list[Any]) -> float:
    """What objects of one type take themselves. What they hold is added to `parts`, or to `strange` where nobody knows
    what it is."""
    if issubclass(kind, _NONE_OF_ITS_OWN):
        return 0
    if kind is list or kind is tuple:
        before = len(parts)
        parts += chain.from_iterable(items)
        return _LIST_BYTES * len(items) + 8.0 * (len(parts) - before)
    size: float = sum(map(getsizeof, items)) + _ALLOCATION // 2 * len(items)
    if issubclass(kind, dict):
        parts += chain.from_iterable(map(dict.values, items))
        return size + _keys([*chain.from_iterable(map(dict.keys, items))], parts)
    if issubclass(kind, _COLLECTIONS):
        parts += chain.from_iterable(items)
        return size
    return size + _beside(kind, items, parts, strange)


def _keys(keys: list[Any], parts: list[Any]) -> float:
    """Names of fields are the same objects in all values, whose decoder knows them; ids are this value's own."""
    if not set(map(type, keys)) <= _FLAT:
        parts += [key for key in keys if type(key) not in _FLAT]
    sample = _sample(keys, _SAMPLE)
    size = 0.0
    for key in sample:
        others = getrefcount(key) - 6  # the dict, the list, the sample, the decoder's memo, this name, and the call
        if type(key) in _FLAT:
            size += _flat(key, type(key)) / max(1, others)
    return size * len(keys) / max(1, len(sample))


def _beside(kind: type, items: list[Any], parts: list[Any], strange: list[Any]) -> float:
    """What objects take beside themselves."""
    names = _names(kind)
    if kind is UUID:
        return _UUID_BYTES * len(items)
    if issubclass(kind, (datetime, time)):
        return _ZONE_BYTES * sum([item.tzinfo is not None and item.tzinfo is not UTC for item in items])
    if kind.__module__.partition(".")[0] == "numpy":
        return 0
    if names:  # asked by name, since to ask for its `__dict__` would make one that stays
        parts += [getattr(item, name, None) for item in items for name in names]
        return max(_ATTRIBUTES_BYTES, 16 * len(names)) * len(items) if kind.__dictoffset__ else 0
    if hasattr(kind, "__pydantic_fields__"):
        held = [item.__dict__ for item in items]
        parts += chain.from_iterable(map(dict.values, held))
        for more in ("__pydantic_extra__", "__pydantic_private__"):
            parts += [found for item in items if (found := getattr(item, more)) is not None]
        known = [item.__pydantic_fields_set__ for item in items]
        return sum(map(getsizeof, held)) + sum(map(getsizeof, known)) + _ALLOCATION * len(items)
    strange += get_referents(*items)
    return 0


@lru_cache(maxsize=512)
def _names(kind: type) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    # Of msgspec and attrs. A Struct that the garbage collector does not see would not even say what it refers to.
    named = getattr(kind, "__struct_fields__", ()) or getattr(kind, "__attrs_attrs__", ())
    return tuple(name if isinstance(name, str) else name.name for name in named)


_FLAT: frozenset[type] = frozenset([str, bytes, int, float, bool, type(None)])
_COLLECTIONS = (list, tuple, set, frozenset, deque)
