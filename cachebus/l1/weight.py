"""What a value takes in memory, found by looking into few.

The length of a payload tells little: of a list of small dicts it is a fortieth of what they take once they are
decoded, and of compressed text less. To look into every value would cost more than to decode it. So sizes are learnt as
a ratio to the payload's length, by data type, class and rough length. A value is looked into with a probability that
grows with its size, so that what nobody has looked into never adds up to much of L1's bound; and a look is a sample.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Collection
from datetime import UTC, datetime, time
from enum import Enum
from functools import lru_cache
from gc import get_referents
from itertools import islice
from sys import getrefcount, getsizeof
from types import FunctionType, ModuleType
from typing import Any
from uuid import UUID

LOOKS = 256
"""About so many values are looked into while all of L1 is replaced once."""
NODES = 16
"""How many parts of a value one look may touch on one level."""
_LEARNT_MAX = 1 << 14
_DOWN, _UP = 1 / 16, 1 / 4
"""How much of a ratio a look replaces. Memory that was taken unseen is worse than some that was left unused."""
_SHARED_INTS = range(-5, 257)
_ALLOCATION = 15  # CPython hands out memory in sixteens
_UUID_BYTES, _ZONE_BYTES = 48, 112
_ATTRIBUTES_BYTES = 320
"""What an object with attributes has beside itself: CPython makes room for thirty, until enough were made in Python."""
_DEPTH_MAX, _STRANGE = 100, 50
_UNKNOWN = 10
_NONE_OF_ITS_OWN = (type, Enum, FunctionType, ModuleType)

_random = random.random


class Weights:
    """Estimates of what values take in memory, for an L1 of `max_bytes`."""

    __slots__ = ("_always_bytes", "_learnt")

    def __init__(self, max_bytes: int) -> None:
        self._always_bytes = max(1, max_bytes // LOOKS)
        self._learnt: dict[tuple[str, type, int], float] = {}

    def of(self, data_type: str, value: object, encoded_bytes: int, *, compressed: bool = False) -> int:
        """About how many bytes the value takes. `encoded_bytes` is the length of the payload that it was decoded from;
        of a `compressed` one that says nothing."""
        kind = type(value)
        if kind in _FLAT:
            return _flat(value, kind)
        if not compressed:
            found = self._learnt.get((data_type, kind, encoded_bytes.bit_length()))
            if found is not None:
                size = found * encoded_bytes
                if _random() * self._always_bytes >= size:
                    return int(size)
        try:
            size = weigh(value, NODES)
        except Exception:  # noqa: BLE001 (of a class that has a mind of its own)
            size = _UNKNOWN * encoded_bytes
        if compressed:
            return int(size)
        # A long list is looked into here and there: what lies between is at least as large as it was encoded.
        size = max(size, encoded_bytes)
        self._learn((data_type, kind, encoded_bytes.bit_length()), size / max(1, encoded_bytes))
        return int(size)

    def _learn(self, about: tuple[str, type, int], ratio: float) -> None:
        if len(self._learnt) >= _LEARNT_MAX and about not in self._learnt:
            self._learnt.clear()
        mean = self._learnt.get(about, ratio)
        self._learnt[about] = mean + (ratio - mean) * (_UP if ratio > mean else _DOWN)


def weigh(value: Any, nodes: int, depth: int = 0) -> float:
    """About how many bytes a value takes, by `nodes` of its parts on each level; what is shared with others is not
    counted, nor what lies deeper than values do."""
    kind = type(value)
    if kind in _FLAT:
        return _flat(value, kind)
    if depth >= _DEPTH_MAX or isinstance(value, _NONE_OF_ITS_OWN):
        return 0
    if isinstance(value, dict):
        return _allocated(value) + _all(value.values(), nodes, depth + 1) + _keys(value, nodes)
    if isinstance(value, _COLLECTIONS):
        return _allocated(value) + _all(value, nodes, depth + 1)
    return _object(value, kind, nodes, depth)


def _flat(value: Any, kind: type) -> int:
    if kind is bool or value is None or (kind is int and value in _SHARED_INTS):
        return 0
    return _allocated(value)


def _allocated(value: object) -> int:
    return getsizeof(value) + _ALLOCATION & ~_ALLOCATION


def _all(items: Collection[Any], nodes: int, depth: int) -> float:
    """What all of them take, by as many of them as may be looked at."""
    count = len(items)
    sample = _sample(items, nodes)
    size, deep = 0.0, []
    for item in sample:
        kind = type(item)
        if kind in _FLAT:
            size += _flat(item, kind)
        else:
            deep.append(item)
    if deep:
        each = max(1, (nodes - len(sample) + len(deep)) // len(deep))
        size += sum([weigh(item, each, depth) for item in deep])
    return size * count / len(sample) if count > nodes else size


def _sample(items: Collection[Any], most: int) -> Collection[Any]:
    count = len(items)
    if count <= most:
        return items
    step = count // most
    return [*islice(items, random.randrange(step), None, step)]


def _keys(items: dict[Any, Any], nodes: int) -> float:
    """Names of fields are the same objects in all values, whose decoder knows them; ids are this value's own."""
    sample = _sample(items, nodes)
    size = 0.0
    for key in sample:
        others = getrefcount(key) - 5  # the dict, the sample, the decoder's memo, this name, and the call
        size += weigh(key, 1) / max(1, others)
    return size * len(items) / max(1, len(sample))


def _object(value: Any, kind: type, nodes: int, depth: int) -> float:
    size = _allocated(value)
    if kind is UUID:
        return size + _UUID_BYTES
    if isinstance(value, (datetime, time)):
        return size if value.tzinfo is None or value.tzinfo is UTC else size + _ZONE_BYTES
    if kind.__module__.partition(".")[0] == "numpy":
        return size
    names = _names(kind)
    if names:  # asked by name, since to ask for its `__dict__` would make one that stays
        size += max(_ATTRIBUTES_BYTES, 16 * len(names)) if kind.__dictoffset__ else 0
        return size + _all([getattr(value, name, None) for name in names], nodes, depth + 1)
    if hasattr(kind, "__pydantic_fields__"):
        held = value.__dict__
        size += _allocated(held) + _allocated(value.__pydantic_fields_set__)
        parts = [*held.values(), value.__pydantic_extra__, value.__pydantic_private__]
        return size + _all(parts, nodes, depth + 1)
    return size + _all(get_referents(value), nodes, depth + _STRANGE)  # it may know the whole program


@lru_cache(maxsize=512)
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


_FLAT: frozenset[type] = frozenset([str, bytes, int, float, bool, type(None)])
_COLLECTIONS = (list, tuple, set, frozenset, deque)
