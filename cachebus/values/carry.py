"""A value as it is stored, with what comes back of it: equal to what was given, or refused."""

from __future__ import annotations

from typing import Any

from cachebus.errors import CacheBusError, NotSerializable, ValueTooLarge
from cachebus.values.codec import decode, encode, with_unset
from cachebus.values.compare import compare
from cachebus.values.extension import CorruptValue
from cachebus.values.unset import restore


def carry(
    value: object,
    codec: str,
    compress_over_bytes: int | None,
    max_bytes: int,
    model: Any = None,
    *,
    lossy: bool = False,
) -> tuple[int, bytes, object]:
    """The codec byte, the payload, and the value that anybody will decode from it.

    With a `model`, what is decoded must equal what was given, at every depth and with the same types, private
    attributes included; what was set on pydantic models is restored. `lossy` takes it as it comes back. Raises
    `NotSerializable`, which says what differs and where, or `ValueTooLarge`, and nothing else.
    """
    try:
        return _carried(value, codec, compress_over_bytes, max_bytes, model, lossy)
    except (CacheBusError, MemoryError):
        raise
    except Exception as error:
        raise NotSerializable(f"what comes back of the value could not be looked at: {error!r}") from error


def _carried(
    value: object, codec: str, compress_over_bytes: int | None, max_bytes: int, model: Any, lossy: bool
) -> tuple[int, bytes, object]:
    byte, payload = encode(value, codec, compress_over_bytes, dumped=model is not None or lossy)
    _check_size(payload, max_bytes)
    try:
        found = decode(byte, payload, model)
    except CorruptValue as error:
        reason = f"the value does not fit the policy's model: {error}" if model is not None else str(error)
        raise NotSerializable(reason) from None
    if model is None or lossy or value is None:
        return byte, payload, found
    unset = compare(value, found)
    if unset:
        byte, payload = with_unset(byte, payload, unset, compress_over_bytes)
        _check_size(payload, max_bytes)
        restore(found, unset)
    return byte, payload, found


def _check_size(payload: bytes, max_bytes: int) -> None:
    if len(payload) > max_bytes:
        raise ValueTooLarge(f"the value takes {len(payload)} bytes, at most {max_bytes} are allowed")
