"""What others may rely on is written down in public_api.txt: every public name, with its signature.

A change there is a change for users: mention it in CHANGELOG.md, and write the list anew by
`python -m tests.unit.test_public_api > tests/unit/public_api.txt`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from typing import Any, ForwardRef, Literal, get_args, get_origin, is_typeddict

from pydantic import BaseModel, SecretStr

import cachebus
import cachebus.celery
import cachebus.django
import cachebus.flask
import cachebus.helpers
import cachebus.manager
import cachebus.testing
from cachebus import producers

PUBLIC = (cachebus, cachebus.testing, producers, cachebus.django, cachebus.flask, cachebus.celery)
LIST = Path(__file__).with_name("public_api.txt")


def described(prefix: str, thing: Any) -> Iterator[str]:
    """A public thing and what is public in it, a line each."""
    if inspect.isclass(thing):
        yield from described_class(prefix, thing)
    elif get_origin(thing) is Literal:
        yield f"{prefix} = {' | '.join(map(repr, get_args(thing)))}"
    elif callable(thing):
        yield f"{prefix}{signature(thing)}"
    elif isinstance(thing, types.MappingProxyType):
        yield f"{prefix} = {dict(thing)}"
    elif isinstance(thing, int | float | str):
        yield f"{prefix} = {thing!r}"
    else:
        yield prefix


def described_class(prefix: str, cls: type) -> Iterator[str]:
    """A class: its bases, its fields or how it is made, and its public methods."""
    yield f"class {prefix}({', '.join(base.__name__ for base in cls.__bases__ if base is not object)})"
    if issubclass(cls, BaseModel):
        for name, field in cls.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = "required" if field.is_required() else str(default) if isinstance(default, SecretStr) else default
            yield f"{prefix}.{field.alias or name} = {shown!r}"
    elif is_typeddict(cls):
        yield from (f"{prefix}[{name!r}]: {written(shape)}" for name, shape in inspect.get_annotations(cls).items())
    elif dataclasses.is_dataclass(cls):
        yield from (f"{prefix}.{field.name}: {field.type}" for field in dataclasses.fields(cls) if field.name[0] != "_")
    elif not issubclass(cls, Exception):
        yield f"{prefix}{signature(cls)}"
    for name, member in sorted(members(cls).items()):
        if name.startswith("_") and name not in ("__aenter__", "__enter__"):
            continue
        found = inspect.unwrap(getattr(member, "__func__", member))
        if isinstance(member, property):
            yield f"{prefix}.{name}: property{', settable' if member.fset else ''}"
        elif inspect.isfunction(found) and not issubclass(cls, BaseModel):
            yield f"{prefix}.{name}{signature(found)}"
        elif isinstance(found, int | float) and not dataclasses.is_dataclass(cls):
            yield f"{prefix}.{name} = {found!r}"


def members(cls: type) -> dict[str, Any]:
    """Its own, and those of bases that are only there to share the work."""
    bases = [c for c in reversed(cls.__mro__) if c is cls or is_hidden(c)]
    return {name: member for base in bases for name, member in vars(base).items()}


def is_hidden(base: type) -> bool:
    """Whether it is a class of ours that nobody is told of."""
    return base.__module__.startswith("cachebus.") and base.__name__ not in cachebus.__all__


class Written(str):
    """An annotation, shown as it is written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def written(annotation: Any) -> Any:
    """An annotation out of its wrapping, which a `NamedTuple` has."""
    return annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation


def signature(thing: Any) -> str:
    """The signature as it is written, the same for every Python version."""
    found = inspect.signature(thing)
    parameters = [
        p if p.annotation is p.empty else p.replace(annotation=Written(written(p.annotation)))
        for p in found.parameters.values()
    ]
    result = found.return_annotation
    returns = found.empty if result is found.empty else Written(result)
    # A default that is nothing but itself, as Django's of a timeout, is written with where it lies.
    text = re.sub(
        r"<object object at \w+>", "...", str(found.replace(parameters=parameters, return_annotation=returns))
    )
    return f"{text}, awaited" if inspect.iscoroutinefunction(thing) else text


def listed() -> list[str]:
    """Everything public, a line each."""
    lines: list[str] = []
    for module in PUBLIC:
        for name in sorted(module.__all__):
            lines += described(f"{module.__name__}.{name}", getattr(module, name))
    return lines


def test_the_public_surface_is_as_written_down() -> None:
    then = LIST.read_text().splitlines()
    changes = list(unified_diff(then, listed(), LIST.name, "the code", lineterm="", n=0))
    assert not changes, "\n".join(["the public surface has changed:", *changes, "", str(__doc__)])


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    for module in PUBLIC:
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), name


def test_nothing_else_is_public_by_accident() -> None:
    others = {
        name
        for name, thing in vars(cachebus).items()
        if not name.startswith("_") and not inspect.ismodule(thing) and name not in cachebus.__all__
    }
    assert others == set()


def test_the_seeds_names_are_also_in_manager_and_helpers() -> None:
    for module in (cachebus.manager, cachebus.helpers):
        for name in cachebus.__all__:
            if hasattr(module, name):
                assert getattr(module, name) is getattr(cachebus, name)
    for name in ("CacheManager", "configure", "lifespan", "current_cache", "declare"):
        assert hasattr(cachebus.manager, name)
    for name in (
        "cached",
        "deserialize_from_cache",
        "generate_resource_id_hash",
        "get_counter",
        "get_with_cache_aside",
        "increment_counter",
        "invalidate_coordinated",
        "invalidate_resource_cache",
        "serialize_for_cache",
        "track_cache_metrics",
    ):
        assert hasattr(cachebus.helpers, name)


def test_every_error_is_a_cache_bus_error_and_what_callers_already_catch() -> None:
    errors = [thing for thing in vars(cachebus).values() if inspect.isclass(thing) and issubclass(thing, Exception)]
    assert len(errors) == 11
    assert all(issubclass(error, cachebus.CacheBusError) for error in errors)
    assert issubclass(cachebus.InvalidKey, ValueError)
    assert issubclass(cachebus.TenantRequired, cachebus.InvalidKey)
    assert issubclass(cachebus.NotSerializable, TypeError)
    assert issubclass(cachebus.ValueTooLarge, ValueError)
    assert issubclass(cachebus.L2Unavailable, ConnectionError)
    assert issubclass(cachebus.LoadTimeout, TimeoutError)


if __name__ == "__main__":
    print("\n".join(listed()))
