"""The slow way of encoding: a walk in Python over a value in which something is not plain."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable
from enum import Enum
from typing import Any

import msgspec

from cachebus.decided import Decided
from cachebus.errors import NotSerializable
from cachebus.values import models
from cachebus.values.extension import EXTRA, FROZENSET, SET, NotEncodable, Tagged, name_of, shown
from cachebus.values.plain import DEPTH_MAX, SCALARS
from cachebus.values.reading import unpack
from cachebus.values.simple import WRITERS


def _hook(value: object) -> msgspec.msgpack.Ext:
    if type(value) is Tagged:
        return msgspec.msgpack.Ext(value.code, value.data)
    raise NotImplementedError  # the walk leaves nothing else


_pack = msgspec.msgpack.Encoder(enc_hook=_hook).encode
_STANDING = frozenset({Tagged, tuple})
"""Types of keys that are, or may hold, what stands for something else."""


def _told_apart(found: dict[Any, Any]) -> bool:
    """Whether a map's keys are as many once they are read: some stand for others, and may equal these."""
    if len(found) < 2 or not any(type(key) in _STANDING for key in found):
        return True
    return len(unpack(_pack(dict.fromkeys(found)))) == len(found)


def encode_any(value: object, *, dumped: bool = False) -> bytes:
    """The msgpack payload of any value that can be carried; `NotSerializable` says what can't, and where it is.

    `dumped`: a pydantic model gives what it dumps, which its type reads again, and not its attributes.
    """
    try:
        try:
            return _pack(_Walk(SCALARS, dumped).of(value, 0))
        except (OverflowError, UnicodeEncodeError):
            # An int or str somewhere is out of msgpack's range. That is rare: only now each of them is looked at.
            return _pack(_Walk(SCALARS - {int, str}, dumped).of(value, 0))
    except NotEncodable as refused:
        raise refused.refusal() from None
    except RecursionError:
        raise NotSerializable("value is nested too deeply, or holds itself") from None


class _Walk:
    """Gives for a value what msgspec packs without loss. Types in `native` are taken as they are."""

    __slots__ = ("_dumped", "_native")

    def __init__(self, native: frozenset[type], dumped: bool) -> None:
        self._native = native
        self._dumped = dumped

    def of(self, value: Any, depth: int) -> Any:
        """The value itself, or what stands for it."""
        kind = type(value)
        if kind in self._native:
            return value
        try:
            writer = WRITERS.get(kind)
            if writer is not None:
                return writer(value)
            if depth >= DEPTH_MAX:
                raise NotEncodable(f"is nested deeper than {DEPTH_MAX} levels, or holds itself")
            if kind is dict:
                return self._map(value.items(), depth + 1)
            if kind is list or kind is tuple:
                return self._list(value, depth + 1)
            return self._kin(value, kind, depth + 1)
        except (NotEncodable, OverflowError, UnicodeEncodeError, RecursionError):
            raise  # of these, `encode_any` knows more
        except Exception as error:  # noqa: BLE001 (of a property or a time zone: code that is not ours)
            raise NotEncodable(f"is of type {name_of(kind)}, and encoding it raised {type(error).__name__}") from None

    def _kin(self, value: Any, kind: type, depth: int) -> Any:
        """What is of none of the known types exactly. Most special first: a numpy float is a float too."""
        if issubclass(kind, Enum):
            return self.of(value.value, depth)
        if issubclass(kind, Decided):
            raise NotEncodable(
                f"is of type {name_of(kind)}: a loader returns it around its value, and it is none itself"
            )
        if "numpy" in sys.modules:
            from cachebus.values import arrays

            tagged = arrays.tagged(value, kind)
            if tagged is not None:
                return tagged
        fields = models.fields_of(value, kind, dumped=self._dumped)
        if fields is not models.NO_MODEL:
            if type(fields) is dict:
                return self._map(fields.items(), depth, declared=getattr(kind, "model_fields", fields))
            return self.of(fields, depth)
        if issubclass(kind, (set, frozenset)):
            return self._set(value, SET if issubclass(kind, set) else FROZENSET, depth)
        if issubclass(kind, dict):
            return self._map(dict.items(value), depth)
        if issubclass(kind, (list, tuple)):
            return self._list(value, depth)
        for base, writer in WRITERS.items():
            if issubclass(kind, base):
                return writer(value)
        raise NotEncodable(f"is of type {name_of(kind)}, which codec msgpack can't carry")

    def _list(self, items: Iterable[Any], depth: int) -> list[Any]:
        native, found = self._native, []
        try:
            for item in items:
                found.append(item if type(item) in native else self.of(item, depth))  # noqa: PERF401 (its length is used)
        except NotEncodable as refused:
            refused.inside(f"[{len(found)}]")
            raise
        return found

    def _map(
        self, pairs: Iterable[tuple[Any, Any]], depth: int, *, declared: Container[str] | None = None
    ) -> dict[Any, Any]:
        """`declared`: the names that the type of a model says, whose attributes these are."""
        native, found, count = self._native, {}, 0
        for name, item in pairs:
            try:
                key = name if type(name) in native else self._key(name, depth)
                found[key] = item if type(item) in native else self.of(item, depth)
            except NotEncodable as refused:
                if declared is None:
                    refused.inside(f"[{shown(name)}]", f"[{name_of(type(name))}]")
                else:
                    refused.inside(f".{name}", "" if name in declared else f".({EXTRA})")
                raise
            count += 1
        if count != len(found) or not _told_apart(found):
            raise NotEncodable("is a dict with two keys that would come back alike (an Enum member beside its value)")
        return found

    def _set(self, items: Iterable[Any], code: int, depth: int) -> Tagged:
        # Its elements are stored as the keys of a map, because msgspec reads an array there as a tuple: hashable.
        try:
            found = [self._key(item, depth) for item in items]
        except NotEncodable as refused:
            refused.inside("{}")
            raise
        elements = dict.fromkeys(found)
        if len(elements) != len(found) or not _told_apart(elements):
            raise NotEncodable(
                "is a set with two elements that would come back alike (an Enum member beside its value)"
            )
        return Tagged(code, _pack(elements))

    def _key(self, key: Any, depth: int) -> Any:
        """A dict's key or a set's element: a tuple stays one, whatever it holds."""
        if isinstance(key, tuple):
            if depth >= DEPTH_MAX:
                raise NotEncodable(f"is nested deeper than {DEPTH_MAX} levels")
            return tuple([self._key(part, depth + 1) for part in key])
        found = self.of(key, depth)
        if type(found) is dict or type(found) is list:
            raise NotEncodable(
                f"is a key or element of type {name_of(type(key))}, which can't be one once it is stored"
            )
        return found
