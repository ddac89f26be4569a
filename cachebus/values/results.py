"""What a function says that it returns, as a model for values: only where they would come back as something else.

1. `returned_by` finds the annotation when the function is decorated, and keeps what its names mean around it.
2. `Returned.model` reads it. It raises where a name is not there yet, and may be asked again.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import MethodType, SimpleNamespace, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    ForwardRef,
    Literal,
    Never,
    NewType,
    NoReturn,
    Self,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
)
from uuid import UUID

from cachebus.base.definition import Definition, callee_of, written
from cachebus.decided import DontCache, Fresh, NotModified
from cachebus.errors import ConfigError

if sys.version_info >= (3, 14):
    import annotationlib

_CONTAINERS: Final = (list, dict, set, frozenset)
_AS_THEY_ARE: Final = (
    *(type(None), bool, int, float, str, bytes, object, date, datetime, time, timedelta, Decimal, UUID),
    *_CONTAINERS,
)
"""What values of these types come back as, without a model. A tuple comes back as a list."""
_SAYS_NOTHING: Final = (Any, NoReturn, Never, typing.LiteralString)
_UNIONS: Final = (Union, UnionType)


Asked = tuple[Any, Definition]
"""A model, and who has asked for it."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What a function says that it returns, to be read when it can be."""

    annotation: Any
    is_async: bool
    names: dict[str, Any]
    """What the names in it mean in its module, as they are when it is read."""
    around: Mapping[str, Any]
    """What they mean in the functions and classes around, as they were when it was decorated."""
    class_around: str
    """The class that it stands in, by its qualified name; "" where it is no method."""
    lacks_class: bool
    """Whether it names that class while it is being made. What has that name before may be another one."""

    def model(self, owner: type | None) -> Any:
        """The model of what it returns, None where none is needed. Of `Model | None` it is the model: None is "not
        found". `owner`: the class that it is a method of. Raises anything: an annotation is any expression, of names
        that may not be there yet."""
        if owner is None and self.lacks_class and "<locals>" in self.class_around:  # another than its module has
            raise NameError(f"nobody says which class {_last(self.class_around)} is: put @cached above what wraps it")
        own = {} if owner is None else _type_params(owner)
        if owner is not None and _last(self.class_around) in ("", owner.__name__):  # not of one that inherits it
            own[owner.__name__] = owner
        # Without those of the parameters, whose types may be there for type checkers alone.
        alone = SimpleNamespace(__annotations__={"return": self.annotation})
        said = typing.get_type_hints(alone, self.names, {**self.around, **own})["return"]
        if not self.is_async and get_origin(said) in (Awaitable, Coroutine):
            said = get_args(said)[-1]
        return model_in(_of_owner(said, owner))


def one_model(known: Asked | None, data_type: str, model: Any, asker: Definition) -> Asked:
    """The model of a data type, and who asked for it first. `ConfigError` for another than the first's, unless the same
    function was defined anew, or that model was."""
    if known is None:
        return model, asker
    first, by = known
    is_made_by_one = by.code is asker.code and repr(first) != repr(model)
    if first != model and (is_made_by_one or not by.is_of(asker)):
        raise ConfigError(
            f"{asker} returns {model!r}, and {by} {first!r}, of one data type, {data_type!r}: a type's values are "
            "decoded into one model"
        )
    return (model, asker) if by.is_of(asker) else known


def returned_by(function: Callable[..., Any]) -> Returned | None:
    """What a function, a method, a partial or an object with `__call__` says; None where it says nothing."""
    says, inner = callee_of(function).function, written(function)
    annotations = _annotations_of(says)
    if "return" not in annotations:
        return None
    named = re.findall(r"\w+", str(annotations["return"]))
    class_around = _class_around(inner)
    lacks_class = _last(class_around) in named and _is_being_made(class_around, inner)
    known = [each for each in named if not lacks_class or each != _last(class_around)]
    return Returned(
        annotation=(_written_by(says) if lacks_class else annotations)["return"],
        is_async=inspect.iscoroutinefunction(says),
        names=getattr(inner, "__globals__", {}),
        around=_type_params(inner) | _around(inner, known),
        class_around=class_around,
        lacks_class=lacks_class,
    )


def _annotations_of(says: Any) -> Mapping[str, Any]:
    """What it is annotated with, as text where that names what isn't there yet: Python 3.14 reads it when asked."""
    if sys.version_info >= (3, 14):
        try:
            return cast("Mapping[str, Any]", says.__annotations__)
        except Exception:  # noqa: BLE001 (of any expression)
            return _written_by(says)
    return getattr(says, "__annotations__", {})


def _written_by(says: Any) -> Mapping[str, Any]:
    """What it is annotated with, not yet read, where it can be had so."""
    if sys.version_info >= (3, 14):
        return annotationlib.get_annotations(says, format=annotationlib.Format.STRING)
    return getattr(says, "__annotations__", {})


def owner_of(source: Callable[..., Any]) -> type | None:
    """The class of what a method is bound to, or of an object with `__call__`; None for a function."""
    while isinstance(source, functools.partial):
        source = source.func
    if isinstance(source, MethodType):
        return source.__self__ if isinstance(source.__self__, type) else type(source.__self__)
    return type(source) if callee_of(source).args else None


def _class_around(function: Any) -> str:
    around = str(getattr(function, "__qualname__", "")).rpartition(".")[0]
    return "" if around.endswith("<locals>") else around


def _last(qualified: str) -> str:
    return qualified.rpartition(".")[2]


def _is_being_made(class_around: str, function: Any) -> bool:
    """Whether the body of the class that a function stands in is being run."""
    names = getattr(function, "__globals__", None)
    return any(block.f_globals is names and block.f_code.co_qualname == class_around for block in _running())


def _type_params(owner: Any) -> dict[str, Any]:
    return {each.__name__: each for each in getattr(owner, "__type_params__", ())}


def _around(function: Any, names: list[str]) -> dict[str, Any]:
    """What these names mean in the functions and classes that are being run, and in which this one is written. A class
    may have methods that are called as types are, such as `list`."""
    found: dict[str, Any] = {}
    for block in _running():
        is_of_its_module = block.f_globals is getattr(function, "__globals__", None)
        if is_of_its_module and function.__qualname__.startswith(f"{block.f_code.co_qualname}."):
            there = {name: block.f_locals[name] for name in names if name in block.f_locals}
            found = {name: each for name, each in there.items() if not hasattr(each, "__get__")} | found
    return found


def _running() -> Iterator[Any]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


def _of_owner(said: Any, owner: type | None) -> Any:
    """With a method's class in place of `Self`, at any depth."""
    if said is Self:
        if owner is None:
            raise NameError("nobody says which class Self is: put @cached above what wraps the method")
        return owner
    given = get_args(said)
    parts = tuple(_of_owner(part, owner) for part in given)
    if all(part is one for part, one in zip(parts, given, strict=True)):
        return said
    if get_origin(said) in _UNIONS:
        return Union[parts]  # noqa: UP007
    return said.copy_with(parts) if hasattr(said, "copy_with") else get_origin(said)[parts]


def model_in(said: Any) -> Any:
    """The model of what is said to be of this type, None where none is needed; `NameError` for a name that is left."""
    behind = _behind(said)
    if behind is not said:
        return model_in(behind)
    if not (several := tuple(_of_values(said))):
        return None
    values: Any = Union[several]  # noqa: UP007
    if values is not said and get_origin(values) not in _UNIONS:
        return model_in(values)
    said = values
    if _is_plain(said):
        return None
    if name := _name_left(said):
        raise NameError(f"name {name!r} stands for what it is in: define it by `type {name} = ...` or TypeAliasType")
    return said


def _of_values(said: Any) -> list[Any]:
    """The types of what comes: None is "not found", and what a function decides of a value is none itself."""
    kind, parts = get_origin(said) or said, get_args(said)
    if kind in (Fresh, DontCache):
        return _of_values(parts[0]) if parts else [Any]
    if kind in _UNIONS:
        return [each for part in parts for each in _of_values(part)]
    return [] if kind in (NotModified, type(None)) else [said]


def _behind(said: Any) -> Any:
    """What a name for a type is given to; of all else itself."""
    if isinstance(said, NewType):
        return said.__supertype__
    if type(said).__name__ == "TypeAliasType":  # typing's, since Python 3.12, or that of typing_extensions
        # Names in its text are those of its own module.
        alone = SimpleNamespace(__annotations__={"return": said.__value__})
        names = getattr(sys.modules.get(said.__module__), "__dict__", {})
        return typing.get_type_hints(alone, names, {said.__name__: said})["return"]
    return get_args(said)[0] if get_origin(said) is Annotated else said


def _name_left(said: Any) -> str | None:
    """A name that its own definition has, which nobody can read where that is no alias for types."""
    if isinstance(said, ForwardRef):
        return said.__forward_arg__
    return next(filter(None, map(_name_left, get_args(said))), None)


def _is_plain(said: Any, inside: tuple[Any, ...] = ()) -> bool:
    """Whether what is of this type comes back as it is, or nothing is known of it. `inside`: the names for types that
    it stands in, whose other parts tell."""
    if isinstance(said, ForwardRef) or any(said is each for each in inside):
        return True
    behind = _behind(said)
    if behind is not said:
        return _is_plain(behind, (*inside, said))
    kind, parts = get_origin(said) or said, get_args(said)
    if isinstance(said, TypeVar) or any(said is each for each in _SAYS_NOTHING):
        return True
    if kind is Literal:
        return all(type(each) in _AS_THEY_ARE for each in parts)
    if kind in _UNIONS or _is_container(kind):
        return all(_is_plain(part, inside) for part in parts)
    return any(kind is each for each in _AS_THEY_ARE) or getattr(kind, "__module__", None) == "numpy"


def _is_container(kind: Any) -> bool:
    if getattr(kind, "__module__", None) == "collections.abc" and isinstance(kind, type):
        return any(issubclass(each, kind) for each in _CONTAINERS)
    return any(kind is each for each in _CONTAINERS)
