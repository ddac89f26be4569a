"""Types of the user's own: functions of theirs that make plain data of a value, and the value again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from cachebus.errors import NotSerializable
from cachebus.values.extension import CorruptValue

Encode = Callable[[Any], Any]
"""Gives bytes, or plain data, of a value; never None."""
Decode = Callable[[Any], Any]
"""Gives the value of what `Encode` gave, as that comes back: a tuple as a list. Never None."""


class OwnType(NamedTuple):
    """The two functions of a data type. None, which is stored as it is, goes through neither."""

    encode: Encode
    decode: Decode


def plain_of(own_type: OwnType, value: Any) -> object:
    """What is to be stored of a value; `NotSerializable`, and nothing else, whatever the user's code raises."""
    try:
        plain = own_type.encode(value)
    except Exception as error:
        raise NotSerializable(f"the policy's encode raised {type(error).__name__}") from error
    if plain is None or inspect.isawaitable(plain):
        raise NotSerializable(f"the policy's encode gave {_described(plain)}, and not plain data")
    return plain


def made_of(own_type: OwnType, plain: Any) -> object:
    """The value of what was stored; `CorruptValue`, and nothing else, whatever the user's code raises."""
    try:
        value = own_type.decode(plain)
    except Exception as error:
        raise CorruptValue(f"the policy's decode raised {type(error).__name__}") from error
    if value is None or inspect.isawaitable(value):
        raise CorruptValue(f"the policy's decode gave {_described(value)}, and no value")
    return value


def _described(given: Any) -> str:
    if inspect.iscoroutine(given):
        given.close()  # else it is warned of, that nobody has awaited it
    return "None" if given is None else "something to be awaited"
