"""Dataclasses, pydantic models and msgspec Structs: to their fields, and from plain data to the type again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import GenericAlias, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin
from uuid import UUID

import msgspec

from cachebus.errors import ConfigError
from cachebus.values.extension import CorruptValue, NotEncodable, name_of

if TYPE_CHECKING:
    from pydantic import BaseModel

NO_MODEL: Any = object()
_AT = " - at `$"
_DECODED = (dict, list, str, int, float, bool, bytes, set, frozenset, datetime, date, time, timedelta, UUID, Decimal)
_WITH_DATA_OF_THEIR_OWN = (*_DECODED, tuple, bytearray)
_Build = Callable[[object], object]
_BUILT_MAX = 512
# By identity: A | B equals B | A, and the order says which of them data that fits both becomes. The model is kept too,
# so that no other one gets its id.
_built: dict[int, tuple[Any, _Build]] = {}


def is_model(kind: type) -> bool:
    """Whether it is a class of named fields, which plain data can be made into."""
    return (
        dataclasses.is_dataclass(kind)
        or issubclass(kind, msgspec.Struct)
        or hasattr(kind, "__pydantic_validator__")
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def fields_of(value: Any, kind: type, *, dumped: bool) -> Any:
    """A model's fields by name (an array-like Struct's in a list, a RootModel's root); `NO_MODEL` for anything else.

    `dumped`: of a pydantic model, what it dumps for its type to read again, instead of its attributes.
    """
    if issubclass(kind, msgspec.Struct):
        return _struct_fields(value, kind)
    if dataclasses.is_dataclass(kind):
        if issubclass(kind, _WITH_DATA_OF_THEIR_OWN):
            raise NotEncodable(f"is of type {name_of(kind)}, which is a dataclass and holds data beside its fields")
        return {field.name: _attribute(value, field.name) for field in dataclasses.fields(kind)}
    from pydantic import BaseModel

    if not issubclass(kind, BaseModel):
        return NO_MODEL
    return _dump(value, kind) if dumped else _pydantic_fields(value, kind)


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except AttributeError:
        raise _at(name, "has no value") from None


def _at(name: str, reason: str) -> NotEncodable:
    refused = NotEncodable(reason)
    refused.inside(f".{name}")
    return refused


def _dump(value: Any, kind: type[BaseModel]) -> Any:
    try:
        return value.model_dump(round_trip=True, warnings=False)
    except Exception as error:  # noqa: BLE001 (of a serializer)
        reason = f"can't be dumped: {type(error).__name__} was raised"
        for name in kind.model_fields:
            try:
                value.model_dump(round_trip=True, warnings=False, include={name})
            except Exception:  # noqa: BLE001 (only which one it is)
                raise _at(name, reason) from None
        raise NotEncodable(f"is of type {name_of(kind)}, and {reason}") from None


def _pydantic_fields(value: Any, kind: type[BaseModel]) -> Any:
    """A model as a dict of its fields. Subclasses keep theirs, and no serializer changes any."""
    held = value.__dict__
    if kind.__pydantic_root_model__:
        return held["root"]
    found = {}
    for name, field in kind.model_fields.items():
        if field.exclude:
            raise _at(
                name, f"is excluded from what {name_of(kind)} dumps, and would be lost (Policy(lossy=True) allows it)"
            )
        if name in held:
            found[name] = held[name]
    return {**found, **(value.__pydantic_extra__ or {})}


def _struct_fields(value: Any, kind: type[msgspec.Struct]) -> Any:
    config = kind.__struct_config__
    fields: dict[Any, Any] = {} if config.tag is None else {config.tag_field: config.tag}
    for name, stored in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True):
        item = getattr(value, name)
        if item is not msgspec.UNSET:
            fields[stored] = item
    return list(fields.values()) if config.array_like else fields


def check_model(model: Any) -> None:
    """`ConfigError` when values can never be decoded into it. What names types that are not defined yet may be, once
    they are."""
    from pydantic import PydanticUndefinedAnnotation, PydanticUserError

    try:
        _builder(model)
    except (PydanticUndefinedAnnotation, NameError):
        return
    except PydanticUserError as error:
        if error.code != "class-not-fully-defined":
            raise ConfigError(f"values can't be decoded into {_shown(model)}: {error.message}") from None
        return
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 (of a type's own code)
        raise ConfigError(f"values can't be decoded into {_shown(model)}: {type(error).__name__} was raised") from None
    mixed = _mixed(model)
    if mixed is not None:
        raise ConfigError(f"values can't be decoded into {_shown(mixed)}: it holds data beside its fields")
    never = _never(model)
    if never is not None:
        raise ConfigError(f"values can't be decoded into {_shown(never)}: it is abstract, or no type of data")


def _mixed(model: Any) -> type | None:
    """A dataclass in a model, at any depth, that is a dict or list too: msgspec makes it without the other's part, and
    to read that ends the process."""
    from msgspec.inspect import DataclassType, Field, Type, type_info

    try:
        todo: list[Any] = [type_info(model)]
    except Exception:  # noqa: BLE001 (only pydantic can tell)
        return None
    seen: dict[int, Any] = {}
    while todo:
        known = todo.pop()
        if isinstance(known, tuple):
            todo += known
        elif isinstance(known, (Type, Field)) and id(known) not in seen:
            seen[id(known)] = known
            if isinstance(known, DataclassType) and issubclass(known.cls, _WITH_DATA_OF_THEIR_OWN):
                return known.cls
            todo += [getattr(known, name) for name in known.__struct_fields__]
    return None


def _never(model: Any) -> Any:
    """The type in it, or in what it is a container or union of, that has no instance which could come out of a payload;
    else None."""
    kind, parts = get_origin(model) or model, [part for part in get_args(model) if part is not type(None)]
    never = [_never(part) for part in parts]
    if kind in (Union, UnionType):
        return next(iter(never), None) if all(each is not None for each in never) else None
    if kind in (list, tuple, set, frozenset, dict) or getattr(kind, "__module__", None) == "collections.abc":
        found = next((each for each in never if each is not None), None)
        if found is not None:
            return found
    return model if inspect.isclass(kind) and _is_never(model, kind) else None


def _is_never(model: Any, kind: type) -> bool:
    from msgspec.inspect import CustomType, type_info

    try:
        known = type_info(model)
    except Exception:  # noqa: BLE001 (only pydantic can tell)
        return False
    if not isinstance(known, CustomType):
        return inspect.isabstract(kind) and (dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct))
    if hasattr(kind, "__pydantic_validator__"):
        return inspect.isabstract(kind)
    # msgspec leaves any other class to us: then what was decoded must be an instance already, as of an array's type.
    return kind.__module__.partition(".")[0] != "numpy" and not any(_is_a(each, kind) for each in _DECODED)


def _is_a(one: type, kind: type) -> bool:
    try:
        return issubclass(one, kind)
    except TypeError:  # a protocol that is none at run time
        return False


def into(model: Any, value: object) -> object:
    """The value as `model`: a class, or a type such as `list[Item]`. None stays None; `CorruptValue` if it doesn't fit.

    The message names fields and types, never values.
    """
    if value is None:
        return None
    from pydantic import ValidationError

    try:
        return _builder(model)(value)
    except (ValidationError, msgspec.ValidationError) as error:
        corrupt = CorruptValue(f"the stored value does not fit {_shown(model)}: {_reasons(error)}")
        corrupt.in_log = f"the stored value does not fit {_shown(model)}: {_kinds(error)}"
        raise corrupt from None
    except ConfigError as error:
        raise CorruptValue(str(error)) from None
    except Exception as error:  # noqa: BLE001 (of a validator)
        raise CorruptValue(f"making {_shown(model)} of the stored value raised {type(error).__name__}") from None


def _reasons(error: Exception) -> str:
    """What does not fit and where, without any value."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        return "; ".join(f"{'.'.join(map(str, p['loc'])) or 'value'}: {p['type']}" for p in problems[:3])
    # msgspec's own words hold types, but for "Invalid ... value 'x'"; and whatever a type's own code has said.
    said, _, where = str(error).rpartition(_AT) if _AT in str(error) else (str(error), "", "")
    cause = error.__cause__
    if cause is not None:
        said = _reasons(cause) if isinstance(cause, ValidationError) else f"{type(cause).__name__} was raised"
    elif said.startswith("Invalid"):
        said = "a value that is not allowed there"
    return f"{said}{_AT}{where}" if where else said


def _kinds(error: Exception) -> str:
    """What does not fit, without where, which may lie behind keys that are data."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        return "; ".join(dict.fromkeys(problem["type"] for problem in problems[:3]))
    return _kinds(error.__cause__) if isinstance(error.__cause__, ValidationError) else _reasons(error)


def _builder(model: Any) -> _Build:
    """What makes the type of plain data; `ConfigError` for what is no type of data."""
    known = _built.get(id(model))
    if known is not None:
        return known[1]
    build = _build(model)
    if len(_built) >= _BUILT_MAX:
        _built.clear()
    _built[id(model)] = model, build
    return build


def _build(model: Any) -> _Build:
    undefined: NameError | None = None
    if not hasattr(model, "__pydantic_validator__"):  # neither a pydantic model nor dataclass
        try:
            msgspec.msgpack.Decoder(model)
        except NameError as error:
            undefined = error
        except Exception:  # noqa: BLE001, S110
            pass  # a union that only pydantic can tell apart, or no type at all
        else:
            return lambda value: msgspec.convert(value, model, dec_hook=_nested)
    from pydantic import PydanticSchemaGenerationError, TypeAdapter

    try:
        adapter = TypeAdapter(model)
    except PydanticSchemaGenerationError as error:
        if undefined is not None:
            raise undefined from None
        why = error.message.partition("\n")[0]
        raise ConfigError(f"values can't be decoded into {_shown(model)}: {why}") from None
    # The model wrote this itself, by its fields' names: what it asks of foreign input need not hold again.
    return lambda value: adapter.validate_python(value, strict=False, by_name=True, by_alias=False)


def _nested(model: Any, value: object) -> object:
    """A part of a type that msgspec doesn't know: a pydantic model, a numpy array, an iterable."""
    kind, parts = get_origin(model) or model, get_args(model)
    if hasattr(kind, "__pydantic_validator__") and not isinstance(value, kind):
        return _builder(model)(value)
    if parts and kind is Iterable and type(value) in (list, set, frozenset):
        return _builder(GenericAlias(type(value), parts))(value)
    if not isinstance(value, kind):
        raise TypeError(f"is not of type {_shown(model)}")
    return value


def _shown(model: Any) -> str:
    return name_of(model) if inspect.isclass(model) else str(model)
