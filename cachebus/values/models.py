"""Dataclasses, pydantic models and msgspec Structs: to their fields, and from plain data to the type again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from cachebus.errors import ConfigError
from cachebus.values.extension import CorruptValue, Refused, name_of

NO_MODEL: Any = object()
_Build = Callable[[object], object]


def fields_of(value: Any, kind: type) -> Any:
    """A model's fields by name (an array-like Struct's in a list, a RootModel's root); `NO_MODEL` for anything else."""
    if issubclass(kind, msgspec.Struct):
        return _struct_fields(value, kind)
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    from pydantic import BaseModel

    if not issubclass(kind, BaseModel):
        return NO_MODEL
    try:
        return value.model_dump(round_trip=True, warnings=False)
    except Exception as error:
        raise Refused(f"is of type {name_of(kind)}, and dumping it failed with {type(error).__name__}") from error


def _struct_fields(value: Any, kind: type[msgspec.Struct]) -> Any:
    config = kind.__struct_config__
    fields: dict[Any, Any] = {} if config.tag is None else {config.tag_field: config.tag}
    for name, stored in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True):
        item = getattr(value, name)
        if item is not msgspec.UNSET:
            fields[stored] = item
    return list(fields.values()) if config.array_like else fields


def into(model: Any, value: object) -> object:
    """The value as `model`: a class, or a type such as `list[Item]`. None stays None; `CorruptValue` if it doesn't fit.

    The message names fields and types, never values.
    """
    if value is None:
        return None
    from pydantic import ValidationError

    try:
        return _builder(model)(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        told = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'value'}: {p['type']}" for p in problems[:3])
        raise CorruptValue(f"the stored value does not fit {_shown(model)}: {told}") from None
    except msgspec.ValidationError as error:
        raise CorruptValue(f"the stored value does not fit {_shown(model)}: {error}") from None


@lru_cache(maxsize=512)
def _builder(model: Any) -> _Build:
    """What makes the type of plain data; `ConfigError` for what is no type of data."""
    if not hasattr(model, "__pydantic_validator__"):  # neither a pydantic model nor dataclass
        try:
            msgspec.msgpack.Decoder(model)
        except TypeError:
            pass  # a union that only pydantic can tell apart, or no type at all
        else:
            return lambda value: msgspec.convert(value, model, dec_hook=_nested)
    from pydantic import PydanticSchemaGenerationError, TypeAdapter

    try:
        adapter = TypeAdapter(model)
    except PydanticSchemaGenerationError as error:
        raise ConfigError(f"values can't be decoded into {_shown(model)}: {error.message}") from None
    # The model wrote this itself, by its fields' names: what it asks of foreign input need not hold again.
    return lambda value: adapter.validate_python(value, strict=False, by_name=True, by_alias=False)


def _nested(model: Any, value: object) -> object:
    """A part of a type that msgspec doesn't know: a pydantic model, a numpy array."""
    if isinstance(value, model):
        return value
    if not hasattr(model, "__pydantic_validator__"):
        raise TypeError(f"is not of type {_shown(model)}")
    return _builder(model)(value)


def _shown(model: Any) -> str:
    return name_of(model) if inspect.isclass(model) else str(model)
