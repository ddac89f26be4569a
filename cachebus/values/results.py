"""What a function says that it returns, as a model for values: only where they would come back as something else."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, Union, get_args, get_origin
from uuid import UUID

_PLAIN: Final = {type(None), bool, int, float, str, bytes, list, dict, tuple, set, frozenset, object, Any}
_AS_THEY_ARE: Final = _PLAIN | {date, datetime, time, timedelta, Decimal, UUID}
"""What values of these types come back as, without a model."""


def model_of(function: Callable[..., Any]) -> Any:
    """The model of what a function returns, None where none is needed or its annotation can't be read yet. Of
    `Model | None` it is the model: None is "not found"."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except Exception:  # noqa: BLE001 (an annotation is any expression, of names that may not be there yet)
        return None
    if get_origin(returned) in (Union, types.UnionType):
        several = [each for each in get_args(returned) if each is not type(None)]
        returned = several[0] if len(several) == 1 else Union[tuple(several)]  # noqa: UP007
    return returned if _is_needed(returned) else None


def _is_needed(returned: Any) -> bool:
    if isinstance(returned, type) and get_origin(returned) is None:
        return returned not in _AS_THEY_ARE
    if isinstance(get_origin(returned), type) and get_origin(returned) not in _AS_THEY_ARE | {types.UnionType}:
        return True
    return any(map(_is_needed, get_args(returned)))
