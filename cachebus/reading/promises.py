"""What a loader says that it gives, where its type's values come back as something else: told once.

The annotation does not decide as what values come. L1 may hold what another process, or a `get`, has read as a dict by
then, and two loaders of one type may say different things: what comes would depend on who has come first.
"""

from __future__ import annotations

import dataclasses
from types import CodeType, FunctionType
from typing import Any, get_args

from pydantic import BaseModel

from cachebus.base.definition import written
from cachebus.base.log import logger
from cachebus.base.parameters import SourceFunction, name_of
from cachebus.policy import Rules
from cachebus.values.results import owner_of, returned_by

KNOWN_MAX = 4_096

_known: dict[tuple[int, str], CodeType] = {}
"""What was looked at, by its code's identity and the data type. The code is kept, so that no other gets that identity:
a lambda or a closure is a new object at each call."""


def look_at_promise(source: SourceFunction, rules: Rules) -> None:
    """Log it once where this loader says that it gives a model or a dataclass, and its type has no model."""
    if rules.model is not None:
        return
    code = source.__code__ if type(source) is FunctionType else getattr(written(source), "__code__", None)
    known = id(code), rules.data_type
    if code is None or known in _known:
        return
    if len(_known) >= KNOWN_MAX:
        _known.clear()
    _known[known] = code
    promised = _promised(source)
    name = getattr(promised, "__qualname__", promised)
    if promised is not None and logger.once(name_of(source), rules.data_type, f"it gives {name}"):
        logger.warning(
            "{} says that it gives {}, but a {} comes as a dict, as it has no model: say cache.of({!r}, model={}), or "
            "give it a Policy with that model",
            name_of(source),
            name,
            rules.data_type,
            rules.data_type,
            name,
        )


def _promised(source: SourceFunction) -> Any:
    """The model or dataclass in its annotation; None where there is none, or it can't be read."""
    try:
        returned = returned_by(source)
        return None if returned is None else _model_among(returned.model(owner_of(source)))
    except Exception:  # noqa: BLE001 (an annotation is any expression)
        return None


def _model_among(said: Any) -> Any:
    if isinstance(said, type) and (issubclass(said, BaseModel) or dataclasses.is_dataclass(said)):
        return said
    return next((found for part in get_args(said) if (found := _model_among(part)) is not None), None)
