"""numpy arrays and scalars. Imported only where numpy is imported already, or a payload holds one of these."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.lib import format as npy

from cachebus.values.extension import ARRAY, NUMPY_SCALAR, NotEncodable, Tagged, name_of

_pack = msgspec.msgpack.Encoder().encode
Array = np.ndarray[Any, Any]


def tagged(value: Any, kind: type) -> Tagged | None:
    """The extension of an array or scalar; None for anything else."""
    if issubclass(kind, np.generic):
        # numpy fills up with NULs what is shorter than its type, and so takes them off on reading.
        nul: Any = "\0" if issubclass(kind, np.str_) else b"\0"
        if issubclass(kind, (np.str_, np.bytes_)) and value.endswith(nul):
            raise NotEncodable(f"is of type {name_of(kind)} with a NUL at its end, which numpy does not read back")
        return Tagged(NUMPY_SCALAR, _pack([_described(value.dtype), value.tobytes()]))
    if kind is np.ndarray:
        return Tagged(ARRAY, _pack([_described(value.dtype), value.shape, value.tobytes()]))
    if issubclass(kind, np.ndarray):  # may hold more than numbers: a mask, a unit
        raise NotEncodable(f"is of type {name_of(kind)}; of arrays, only a plain numpy.ndarray can be carried")
    return None


def _described(dtype: np.dtype[Any]) -> Any:
    if dtype.hasobject:
        raise NotEncodable("is a numpy array of Python objects, which codec msgpack can't carry")
    if issubclass(dtype.type, np.record):
        raise NotEncodable("is a numpy record, which would come back as numpy.void")
    return npy.dtype_to_descr(dtype) if dtype.names else dtype.str


_dtypes: dict[str, np.dtype[Any]] = {}
"""Structured types by their description: each decoded value would hold one of its own, of several hundred bytes."""


def _dtype(described: Any) -> np.dtype[Any]:
    if isinstance(described, str):
        return _made(described)
    name = repr(described)
    known = _dtypes.get(name)
    if known is None:
        if len(_dtypes) >= 256:
            _dtypes.clear()
        known = _dtypes[name] = _made(described)
    return known


def _made(described: Any) -> np.dtype[Any]:
    dtype = npy.descr_to_dtype(_as_descr(described))
    if dtype.hasobject:
        raise ValueError("a stored array can't hold Python objects")
    return dtype


def _as_descr(described: Any) -> Any:
    """msgpack made lists of the tuples in the description of a structured type: undo that."""
    if isinstance(described, str):
        return described
    return [(_field_name(name), _as_descr(kind), *map(tuple, shape)) for name, kind, *shape in described]


def _field_name(name: Any) -> Any:
    return tuple(name) if isinstance(name, list) else name


def read_array(described: Any, shape: list[int], data: bytes) -> Array:
    """A writable array with memory of its own."""
    dtype = _dtype(described)
    if dtype.itemsize * math.prod(shape) != len(data):
        raise ValueError("a stored array has another size than its shape and type")
    return np.ndarray(tuple(shape), dtype, data).copy()


def read_scalar(described: Any, data: bytes) -> object:
    """A numpy scalar."""
    return read_array(described, [], data)[()]


def is_array(value: object) -> bool:
    """Whether it is a plain numpy array."""
    return type(value) is np.ndarray


def as_float32(value: Array) -> bytes:
    """Shape and numbers of an array of real numbers, as float32."""
    if value.dtype.kind not in "fiu":
        raise NotEncodable(f"is a numpy array of {value.dtype}, and codec f32 takes real numbers only")
    with np.errstate(over="ignore"):
        narrow = value.astype("<f4")
    if value.dtype.kind == "f" and np.isinf(narrow).sum() != np.isinf(value).sum():
        raise NotEncodable("holds a number that is too large for codec f32")
    return _pack([value.shape, narrow.tobytes()])


def from_float32(shape: list[int], data: bytes) -> Array:
    """The array that `as_float32` packed: float32, writable."""
    return read_array("<f4", shape, data)
