"""Whether what is decoded is what was given: type by type, field by field, at every depth.

A type's own `==` is not enough: it calls True and 1, or an enum member and its value, the same; where a class writes
one it may know nothing of private attributes; and it says no to NaN and to arrays. So containers and models are looked
into here, and `==` judges what has no parts.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

import msgspec

from cachebus.errors import NotSerializable
from cachebus.values.extension import EXTRA, NotEncodable, name_of, shown
from cachebus.values.models import is_model
from cachebus.values.plain import CONTAINERS, SCALARS
from cachebus.values.unset import Step, Unset, restorable

_ATOMS = SCALARS | {date, timedelta, Decimal, UUID}
_CHANGED = "comes back changed"
_NOTHING: Any = object()
_Field = Callable[[str, Any], Any]
_PAIRED_MAX = 64
"""So many elements of a set that equal none but themselves are paired one by one; with more it counts as changed."""


def compare(given: object, found: object) -> Unset:
    """Which fields were not set on the given models but are on those found, or the other way round.

    `NotSerializable` when something else differs: it names the field, and never a value.
    """
    comparison = _Comparison()
    try:
        comparison.of(given, found)
    except NotEncodable as refused:
        reason = refused.reason
    except Exception as raised:  # noqa: BLE001 (of a property or an `==` that is not ours)
        reason = f"can't be compared with what comes back: {type(raised).__name__} was raised"
    else:
        return comparison.unset
    what = f"{reason}; Policy(lossy=True) takes it as it comes back, or change the model"
    error = NotSerializable(f"value{''.join(map(_written, comparison.path))} {what}")
    error.in_log = f"value{''.join(map(comparison.in_log, comparison.path))} {what}"
    raise error


def _written(step: Step | None) -> str:
    if step is None:
        return "{}"
    if isinstance(step, str):
        return f".{step}"
    return f"[{step if isinstance(step, int) else shown(step[0])}]"


class _Comparison:
    """One comparison. `path` leads to what is being looked at; it stays where something differs."""

    __slots__ = ("_declared", "_inside", "path", "unset")

    def __init__(self) -> None:
        self.path: list[Step | None] = []
        self.unset: Unset = []
        self._declared = set[str]()
        """The names in `path` that are of types, and not of data."""
        self._inside = False  # a model: there even plain data must come back as it is

    def in_log(self, step: Step | None) -> str:
        """A step without data."""
        if isinstance(step, str) and step not in self._declared:
            return f".({EXTRA})"
        return _written(step) if step is None or isinstance(step, (str, int)) else f"[{name_of(type(step[0]))}]"

    def of(self, given: Any, found: Any) -> None:
        """Raise `NotEncodable` where they differ."""
        if given is found:
            return
        kind = type(given)
        if kind is not type(found):
            # An int is as good as a float where one is declared, and equals it.
            if kind is int and type(found) is float and given == found:
                return
            if kind in CONTAINERS and not self._inside and is_model(type(found)):
                self._made_of(given, found)
                return
            raise NotEncodable(f"is of type {name_of(kind)}, and comes back as {name_of(type(found))}")
        if kind in _ATOMS:
            _atoms(given, found)
        elif kind is dict:
            self._dicts(given, found)
        elif kind is list or kind is tuple:
            self._lists(given, found)
        else:
            self._kin(given, found, kind)

    def _kin(self, given: Any, found: Any, kind: type) -> None:
        if _is_pydantic(kind):
            return self._models(given, found, kind)
        if issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind):
            return self._attributes(given, found, kind)
        if issubclass(kind, (datetime, time)):
            # Of two zones, `==` says no to an hour that is there twice.
            return _require(given == found or given.isoformat() == found.isoformat())
        if "numpy" in sys.modules:
            import numpy as np

            if issubclass(kind, (np.ndarray, np.generic)):
                alike = given.dtype == found.dtype and given.shape == found.shape
                return _require(alike and _same_bytes(given, found))
        parts = True
        if issubclass(kind, dict):
            self._dicts(given, found)
            if issubclass(kind, defaultdict) and given.default_factory is not found.default_factory:
                raise NotEncodable(f"is of type {name_of(kind)}, and comes back with another default_factory")
        elif issubclass(kind, (list, tuple)):
            self._lists(given, found)
        elif issubclass(kind, (set, frozenset)):
            self._sets(given, found)
        else:
            parts = False
        named = _names(given, kind)
        if named:
            self._attributes(given, found, kind)
        if not parts and (kind.__eq__ is not object.__eq__ or not named):
            _require(bool(given == found))
        return None

    def _made_of(self, given: Any, found: Any) -> None:
        """Plain data, of which the policy's model was made: as it validates is as it was meant. Only models that the
        data holds must be there again."""
        kind = type(given)
        if is_model(kind):
            self.of(given, found)
        elif kind is dict:
            for name, one in given.items():
                held = found.get(name, _NOTHING) if isinstance(found, dict) else getattr(found, str(name), _NOTHING)
                self._made_of_step(name if isinstance(name, str) else (name,), one, held)
        elif kind in CONTAINERS and isinstance(found, (list, tuple)):
            for i, (one, other) in enumerate(zip(given, found, strict=False)):
                self._made_of_step(i, one, other)

    def _made_of_step(self, step: Step, given: Any, found: Any) -> None:
        if found is not _NOTHING and type(given) not in _ATOMS:
            self.path.append(step)
            self._made_of(given, found)
            self.path.pop()

    def _step(self, step: Step | None, given: Any, found: Any) -> None:
        self.path.append(step)
        self.of(given, found)
        self.path.pop()

    def _models(self, given: Any, found: Any, kind: type[Any]) -> None:
        held, fields = given.__dict__, kind.__pydantic_fields__
        self._named(_beside(fields, held, kind), held.get, found.__dict__.get)
        for more in ("__pydantic_extra__", "__pydantic_private__"):
            held, got = getattr(given, more), getattr(found, more)
            if held or got:
                held, got = held or {}, got or {}
                self._named({**held, **got}, held.get, got.get, declared=more == "__pydantic_private__")
        unset = found.__pydantic_fields_set__ ^ given.__pydantic_fields_set__
        if unset and restorable(self.path):
            self.unset.append((tuple(self.path), sorted(unset)))  # type: ignore[arg-type]

    def _attributes(self, given: Any, found: Any, kind: type) -> None:
        # By name: to ask the object that was decoded for its `__dict__` would make one, and that stays in memory.
        self._named(_names(given, kind), partial(getattr, given), partial(getattr, found))

    def _named(self, names: Iterable[str], given_of: _Field, found_of: _Field, *, declared: bool = True) -> None:
        inside, self._inside = self._inside, True
        for name in names:
            given, found = given_of(name, _NOTHING), found_of(name, _NOTHING)
            kind = type(given)
            if given is found or (kind in SCALARS and kind is type(found) and given == found):
                continue
            self.path.append(name)
            if declared:
                self._declared.add(name)
            if given is _NOTHING or found is _NOTHING:
                raise NotEncodable("gets lost" if found is _NOTHING else "has no value, and comes back with one")
            self.of(given, found)
            self.path.pop()
        self._inside = inside

    def _lists(self, given: Any, found: Any) -> None:
        if len(given) != len(found):
            raise NotEncodable("comes back with another length")
        kinds = [*map(type, given)]
        if SCALARS.issuperset(kinds) and kinds == [*map(type, found)] and given == found:
            return
        for i, (one, other) in enumerate(zip(given, found, strict=True)):
            if type(one) is not type(other) or type(one) not in SCALARS or one != other:
                self._step(i, one, other)

    def _dicts(self, given: dict[Any, Any], found: dict[Any, Any]) -> None:
        if len(given) != len(found):
            raise NotEncodable("comes back with other keys")
        if any(type(k) is not type(q) or k != q for k, q in zip(given, found, strict=True)):
            given, found = self._in_one_order(given, found)
        for (key, one), (same_key, other) in zip(given.items(), found.items(), strict=True):
            if type(key) is not str:
                self._step((key,), key, same_key)
            if type(one) is not type(other) or type(one) not in SCALARS or one != other:
                self._step((key,), one, other)

    def _in_one_order(self, given: dict[Any, Any], found: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
        pairs = self._pairs(given, found)
        return {key: given[key] for key, _ in pairs}, {key: found[key] for _, key in pairs}

    def _sets(self, given: Any, found: Any) -> None:
        for one, other in self._pairs(given, found):
            self._step(None, one, other)

    def _pairs(self, given: Iterable[Any], found: Iterable[Any]) -> list[tuple[Any, Any]]:
        """Keys or elements with those that equal them, in whatever order they come."""
        others = {other: other for other in found}
        pairs, alone = [], []
        for one in given:
            other = others.pop(one, _NOTHING)
            if other is _NOTHING:
                alone.append(one)
            else:
                pairs.append((one, other))
        if len(alone) != len(others) or len(alone) > _PAIRED_MAX:
            raise NotEncodable("comes back with other keys or elements")
        for one in alone:
            other = next((other for other in others if _alike(one, other)), _NOTHING)
            if other is _NOTHING:
                raise NotEncodable("comes back with other keys or elements")
            pairs.append((one, others.pop(other)))
        return pairs


def _alike(given: object, found: object) -> bool:
    try:
        _Comparison().of(given, found)
    except NotEncodable:
        return False
    return True


def _atoms(given: Any, found: Any) -> None:
    if type(given) is Decimal and given.is_nan():
        return _require(str(given) == str(found))  # a signalling one can't be compared
    return _require(given == found or (given != given and found != found))


def _require(equal: bool) -> None:
    if not equal:
        raise NotEncodable(_CHANGED)


def _names(value: Any, kind: type) -> list[str]:
    """The names of what an object holds: its fields, its slots, and what else was set on it."""
    declared = _declared(kind)
    held = getattr(value, "__dict__", None)
    return _beside(declared, held, kind) if held else [*declared]


def _beside(declared: dict[str, Any], held: dict[str, Any], kind: type) -> list[str]:
    """The names that are declared, and those that an object holds beside them."""
    if held.keys() <= declared.keys():  # as almost always
        return [*declared]
    return [*declared, *(name for name in held if name not in declared and not _is_cached(kind, name))]


@lru_cache(maxsize=512)
def _is_pydantic(kind: type) -> bool:
    from pydantic import BaseModel

    return issubclass(kind, BaseModel)


@lru_cache(maxsize=512)
def _declared(kind: type) -> dict[str, None]:
    if issubclass(kind, msgspec.Struct):
        return dict.fromkeys(kind.__struct_fields__)
    fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    slots = [
        slot if not slot.startswith("__") or slot.endswith("__") else f"_{base.__name__.lstrip('_')}{slot}"
        for base in kind.__mro__
        for slots in (base.__dict__.get("__slots__", ()),)
        for slot in ((slots,) if isinstance(slots, str) else slots)
    ]
    return dict.fromkeys([*fields, *(slot for slot in slots if slot not in ("__dict__", "__weakref__"))])


@lru_cache(maxsize=2048)
def _is_cached(kind: type, name: str) -> bool:
    """Whether the class makes it when it is asked for, as by `cached_property`: it is what the fields say."""
    made = inspect.getattr_static(kind, name, None)
    method = inspect.isroutine(made) or isinstance(made, (classmethod, staticmethod))
    return hasattr(made, "__get__") and not method


def _same_bytes(given: Any, found: Any) -> bool:
    """Of numpy values of one type and shape; what lies between the fields of a structured one is no part of it."""
    if given.dtype.names is None:
        return bool(given.tobytes() == found.tobytes())
    return all(_same_bytes(given[name], found[name]) for name in given.dtype.names)
