"""A value as it is stored, with what comes back of it: equal to what was given, or refused."""

from __future__ import annotations

from typing import Any, NamedTuple

from cachebus.errors import CacheBusError, NotSerializable, ValueTooLarge
from cachebus.values.codec import decode, encode, with_unset
from cachebus.values.compare import compare
from cachebus.values.extension import CorruptValue
from cachebus.values.own_types import OwnType, plain_of
from cachebus.values.unset import restore


class Form(NamedTuple):
    """How the values of a type are stored."""

    codec: str
    """As of `encode`."""
    compress_over_bytes: int | None
    max_bytes: int
    model: Any = None
    """What they are decoded as."""
    lossy: bool = False
    """Whether what comes back may differ from what was given."""
    own_type: OwnType | None = None
    """Functions of the user's that encode and decode; then there is no model."""


def carry(value: object, form: Form) -> tuple[int, bytes, object]:
    """The codec byte, the payload, and the value that anybody will decode from it.

    With a model, what is decoded must equal what was given, at every depth and with the same types, private attributes
    included; what was set on pydantic models is restored. A `lossy` form takes it as it comes back, and so does one
    with `own_type`, as only these know what is equal. Raises `NotSerializable`, which says what differs and where, or
    `ValueTooLarge`, and nothing else.
    """
    try:
        return _carried(value, form)
    except (CacheBusError, MemoryError):
        raise
    except Exception as error:
        raise NotSerializable(f"what comes back of the value could not be looked at: {type(error).__name__}") from error


def _carried(value: object, form: Form) -> tuple[int, bytes, object]:
    codec, compress_over_bytes, max_bytes, model, lossy, own_type = form
    if own_type is not None and value is not None:
        value = plain_of(own_type, value)
    byte, payload = encode(value, codec, compress_over_bytes, dumped=model is not None or lossy)
    _check_size(payload, max_bytes)
    try:
        found = decode(byte, payload, model, own_type)
    except CorruptValue as error:
        reason = f"the value does not fit the policy's model: {error}" if model is not None else str(error)
        refused = NotSerializable(reason)
        refused.in_log = reason.replace(str(error), error.in_log) if error.in_log else ""
        raise refused from None
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
