"""From msgpack to the value, with one decoder for all."""

from __future__ import annotations

from typing import Any

import msgspec

from cachebus.values import extension as ext
from cachebus.values.extension import CorruptValue
from cachebus.values.simple import READERS


def _extension(code: int, data: memoryview) -> object:
    reader = READERS.get(code)
    if reader is not None:
        return reader(data)
    if code == ext.SET:
        return set(_elements(data))
    if code == ext.FROZENSET:
        return frozenset(_elements(data))
    if code in (ext.ARRAY, ext.NUMPY_SCALAR):
        from cachebus.values import arrays

        parts = unpack(data)
        return arrays.read_array(*parts) if code == ext.ARRAY else arrays.read_scalar(*parts)
    raise CorruptValue(f"msgpack extension {code} is not known")


def _elements(data: memoryview) -> dict[Any, Any]:
    found = unpack(data)
    if type(found) is not dict:
        raise CorruptValue("the elements of a set are not there")
    return found


unpack = msgspec.msgpack.Decoder(ext_hook=_extension).decode
"""The value of a msgpack payload. Damage makes it raise anything."""
