"""The codecs: which byte says how a payload is to be read, and the way there and back.

```
1  msgpack, with this library's extensions
2  raw: the bytes themselves
3  f32: numbers as float32, little-endian; read as a list of floats
4  f32 of a numpy array: msgpack of shape and float32 bytes; read as an array of float32
5  msgpack of models, behind what was not set on them: 4 bytes of length (big-endian), a msgpack list of [path, names],
   then what codec 1 has. A path's steps are a str for an attribute, an int for an index, [key] for a dict's key
   + 128: the payload is compressed by zlib
```
The length of a payload is the size of the value.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from cachebus.errors import ConfigError, NotSerializable
from cachebus.values.extension import CorruptValue, NotEncodable, name_of
from cachebus.values.models import into
from cachebus.values.own_types import OwnType, made_of
from cachebus.values.plain import SCALARS, is_plain
from cachebus.values.reading import unpack
from cachebus.values.unset import Unset, restore
from cachebus.values.walk import encode_any

MSGPACK, RAW, F32, F32_ARRAY, UNSET = 1, 2, 3, 4, 5
ZLIB = 0x80
INFLATED_MAX_BYTES = 64 << 20
"""No more is ever unpacked from a compressed payload, whatever it holds; larger ones are not compressed."""
_ZLIB_LEVEL = 1  # a cache wants the speed more than the last tenth of the size

_Encoded = TypeVar("_Encoded")
_LENGTH = struct.Struct(">I")
_pack = msgspec.msgpack.Encoder().encode


def encode(
    value: object, codec: str = "msgpack", compress_over_bytes: int | None = None, *, dumped: bool = False
) -> tuple[int, bytes]:
    """The value's codec byte and payload. A payload of more than `compress_over_bytes` is compressed if that helps.

    `codec` is "msgpack" (anything), "f32" (a list of numbers or a numpy array, at half the size and precision) or
    "raw" (bytes). `dumped`: pydantic models give what they dump, for their type to read again, not their attributes.
    Raises `NotSerializable`, and nothing else whatever the value's own code raises; it names the type that can't be
    carried and where it is, never the value.
    """
    if codec == "msgpack":
        byte = MSGPACK
        try:
            payload = _pack(value)
            plain = type(value) in SCALARS or is_plain(value, payload)
        except Exception:  # noqa: BLE001 (said better by the walk, or not even an error there)
            plain = False
        if not plain:
            payload = _guarded(lambda it: encode_any(it, dumped=dumped), value)
    else:
        byte, payload = _guarded(_by_name(codec), value)
    return (byte, payload) if compress_over_bytes is None else compressed(byte, payload, compress_over_bytes)


def _guarded(encoder: Callable[[Any], _Encoded], value: object) -> _Encoded:
    try:
        return encoder(value)
    except NotSerializable:
        raise
    except Exception as error:  # noqa: BLE001 (the value's own code may raise anything)
        kind = name_of(type(value))
        raise NotSerializable(f"value is of type {kind}, and encoding it raised {type(error).__name__}") from None


def compressed(byte: int, payload: bytes, compress_over_bytes: int | None) -> tuple[int, bytes]:
    """The same, compressed where that is wanted and helps."""
    if compress_over_bytes is not None and compress_over_bytes < len(payload) <= INFLATED_MAX_BYTES:
        packed = zlib.compress(payload, _ZLIB_LEVEL)
        if len(packed) < len(payload):
            return byte | ZLIB, packed
    return byte, payload


def decode(codec_byte: int, payload: bytes | memoryview, model: Any = None, own_type: OwnType | None = None) -> object:
    """The value again; with `model` (a dataclass, pydantic model, Struct, or type such as `list[Item]`) as that type;
    with `own_type` as what these make of it.

    Raises `CorruptValue`, and nothing else: for any damage, when the value does not fit the model, and when nothing can
    be decoded into `model`.
    """
    try:
        if codec_byte == MSGPACK:
            value = unpack(payload)
        elif codec_byte & ~ZLIB == UNSET:
            return _decode_unset(_inflated(payload) if codec_byte & ZLIB else payload, model)
        else:
            value = _decode_other(codec_byte, payload)
        if own_type is not None and value is not None:
            return made_of(own_type, value)
        return value if model is None else into(model, value)
    except CorruptValue:
        raise
    except Exception as error:
        raise CorruptValue(f"a payload of codec {codec_byte} can't be read: {type(error).__name__}") from error


def with_unset(byte: int, payload: bytes, unset: Unset, compress_over_bytes: int | None) -> tuple[int, bytes]:
    """The msgpack payload of models, and beside it what was not set on them."""
    if byte & ZLIB:
        payload = _inflated(payload)
    packed = _pack(unset)
    return compressed(UNSET, _LENGTH.pack(len(packed)) + packed + payload, compress_over_bytes)


def _decode_unset(data: bytes | memoryview, model: Any) -> object:
    (length,) = _LENGTH.unpack_from(data)
    at = _LENGTH.size + length
    if at > len(data):
        raise CorruptValue("a payload of codec 5 is cut")
    value = unpack(memoryview(data)[at:])
    if model is None:
        return value
    found = into(model, value)
    restore(found, unpack(memoryview(data)[_LENGTH.size : at]))
    return found


def _by_name(codec: str) -> Callable[[Any], tuple[int, bytes]]:
    encoder = _ENCODERS.get(codec)
    if encoder is None:
        raise ConfigError(f"codec {codec!r} is not known; there are {', '.join(CODECS)}")
    return encoder


def _encode_raw(value: object) -> tuple[int, bytes]:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise NotSerializable(f"value is of type {name_of(type(value))}, and codec raw takes bytes only")
    return RAW, bytes(value)


def _encode_f32(value: Any) -> tuple[int, bytes]:
    if isinstance(value, (list, tuple)):
        try:
            return F32, struct.pack(f"<{len(value)}f", *value)
        except OverflowError:
            raise NotSerializable("value holds a number that is too large for codec f32") from None
        except (struct.error, TypeError):
            raise NotSerializable(f"{_first_that_is_no_number(value)}, and codec f32 takes numbers only") from None
    if "numpy" in sys.modules:
        from cachebus.values import arrays

        if arrays.is_array(value):
            try:
                return F32_ARRAY, arrays.as_float32(value)
            except NotEncodable as refused:
                raise NotSerializable(f"value {refused.reason}") from None
    raise NotSerializable(
        f"value is of type {name_of(type(value))}, and codec f32 takes a list of numbers or a numpy array"
    )


def _first_that_is_no_number(items: list[object] | tuple[object, ...]) -> str:
    for i, item in enumerate(items):
        if not hasattr(item, "__float__") and not hasattr(item, "__index__"):
            return f"value[{i}] is of type {name_of(type(item))}"
    return "value holds something else"


def _decode_other(codec_byte: int, payload: bytes | memoryview) -> object:
    if codec_byte & ZLIB:
        return _decode_plain(codec_byte & ~ZLIB, _inflated(payload))
    return _decode_plain(codec_byte, payload)


def _decode_plain(codec_byte: int, payload: bytes | memoryview) -> object:
    if codec_byte == MSGPACK:
        return unpack(payload)
    if codec_byte == RAW:
        return bytes(payload)
    if codec_byte == F32:
        numbers = array("f")
        numbers.frombytes(payload)
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()
    if codec_byte == F32_ARRAY:
        from cachebus.values import arrays

        return arrays.from_float32(*unpack(payload))
    raise CorruptValue(f"codec {codec_byte} is not known")


def _inflated(payload: bytes | memoryview) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(payload, INFLATED_MAX_BYTES + 1)
    if not stream.eof or stream.unused_data or len(data) > INFLATED_MAX_BYTES:
        raise CorruptValue("a compressed payload is cut, too large, or has something behind it")
    return data


_ENCODERS: dict[str, Callable[[Any], tuple[int, bytes]]] = {"f32": _encode_f32, "raw": _encode_raw}
CODECS = ("msgpack", *_ENCODERS)
"""The names that `encode` knows."""
