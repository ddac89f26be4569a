"""What a caller's function takes of the resource id, the tenant and the context, and of what is still cached: worked
out once a function.

1. `passing_of` looks the function up among those seen before (`_shape`).
2. One that is new is worked out from its signature (`_made`).
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Hashable
from types import CodeType, FunctionType, MethodType
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from cachebus.errors import ConfigError

if sys.version_info >= (3, 14):
    import annotationlib

SourceFunction = Callable[..., Any]

PASSINGS_MAX: Final = 1024
_NAMES: Final = ("resource_id", "tenant_id", "ctx")
PREVIOUS: Final = "previous"
_ARGS, _KWARGS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_BY_POSITION_ONLY, _BY_NAME_ONLY = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY


class Passing(NamedTuple):
    """Which of the three, by their index, go by position, and which by what name."""

    positional: tuple[int, ...]
    named: tuple[tuple[str, int], ...]
    takes_previous: bool = False
    """Whether it has a parameter `previous`, which is given by name."""


class StandIn:
    """What is called in a source's place, with what that one takes: it has it called elsewhere."""

    def __init__(self, source: SourceFunction) -> None:
        self.source = source

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the source gives."""
        raise NotImplementedError


def passing_of(source: SourceFunction) -> Passing:
    """What a source gets; the rules are told at `cachebus.reading.source.bind`. Raises `ConfigError`."""
    if isinstance(source, StandIn):
        source = source.source
    shape = _shape(source)
    if shape is not None:
        known = _by_code.get(shape[0])
        if known is not None:
            return known[0]
        if len(_by_code) >= PASSINGS_MAX:
            _by_code.clear()
        passing = _made(source)
        _by_code[shape[0]] = passing, shape[1]
        return passing
    # A bound method is a new object each time it is looked up; its function is not.
    memo, held = (_by_method, source.__func__) if isinstance(source, MethodType) else (_by_source, source)
    try:
        remembered = memo.get(held)
        if remembered is None:
            memo[held] = remembered = _made(source)
    except TypeError:  # it has no hash, or takes no weak references
        return _made(source)
    return remembered


def refuse_generator(source: SourceFunction, what: str) -> None:
    """`ConfigError` for a generator function, async or not; `what` it is, for the message: "the loader"."""
    for function in (source, type(source).__call__):
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(
                f"{what} {name_of(source)} is a generator: callers share what is loaded, and the first to read it "
                "would leave nothing to the others. Let it return a list"
            )


def check_async(function: SourceFunction) -> None:
    """`ConfigError` for what is no function, for a generator, and for a plain function that is not async."""
    if not callable(function):
        raise not_async(function)
    refuse_generator(function, "@cached: the function")
    plain = type(function) is FunctionType and not hasattr(function, "__wrapped__")
    if plain and not inspect.iscoroutinefunction(function):
        raise not_async(function)


def check_sync(function: SourceFunction) -> None:
    """`ConfigError` for what is no function, for a generator, and for an async function."""
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"BlockingCache.cached takes sync functions, and {name_of(function)} is none: for async ones there is "
            "@cached, with a Cache"
        )
    refuse_generator(function, "BlockingCache.cached: the function")


def not_async(function: SourceFunction) -> ConfigError:
    """The error for a sync function where only an async one will do."""
    return ConfigError(
        f"@cached takes async functions, and {name_of(function)} is none: make it `async def`, and await in it"
    )


def name_of(source: SourceFunction) -> str:
    """What a function is called, for messages."""
    while isinstance(source, functools.partial | StandIn):
        source = source.func if isinstance(source, functools.partial) else source.source
    return str(getattr(source, "__qualname__", type(source).__qualname__))


def signature_of(source: SourceFunction, *, follow_wrapped: bool = True) -> inspect.Signature:
    """Its signature, also where annotations name what is not there yet, or for type checkers alone: since Python 3.14
    they are read when they are asked for. `TypeError` for what is not called, `ValueError` where it does not say."""
    if sys.version_info >= (3, 14):
        as_far = annotationlib.Format.FORWARDREF
        return inspect.signature(source, follow_wrapped=follow_wrapped, annotation_format=as_far)
    return inspect.signature(source, follow_wrapped=follow_wrapped)


# -- remembered ------------------------------------------------------------------------------------------

Shape = tuple[Hashable, CodeType]

_by_code: dict[Hashable, tuple[Passing, CodeType]] = {}
"""Of plain functions. By their code, since a lambda written at the call is a new object each time. By the code's
identity, since its hash goes over all of it; the code is kept, so that no other gets that identity."""
_by_source: WeakKeyDictionary[SourceFunction, Passing] = WeakKeyDictionary()
"""Of all others, such as wrappers. Weakly, since a function may hold a session, or a whole request."""
_by_method: WeakKeyDictionary[SourceFunction, Passing] = WeakKeyDictionary()
"""Of the methods that those are."""


def _shape(source: Any) -> Shape | None:
    """What decides how a function, a method, a partial or an object with `__call__` is called, and its code; nothing of
    what it holds. None where more than the code decides."""
    kind = type(source)
    if kind is FunctionType:
        if source.__dict__ and _says_otherwise(source):
            return None
        by_name = source.__kwdefaults__
        code = source.__code__
        return (id(code), len(source.__defaults__ or ()), frozenset(by_name) if by_name else None), code
    if kind is MethodType:
        inner = _shape(source.__func__)
        return None if inner is None else ((inner[0], "bound"), inner[1])
    if _says_otherwise(source):
        return None
    if kind is functools.partial:
        inner = _shape(source.func)
        return None if inner is None else ((inner[0], len(source.args), tuple(source.keywords)), inner[1])
    called = kind.__call__
    inner = _shape(called) if type(called) is FunctionType and not isinstance(source, type) else None
    return None if inner is None else ((inner[0], "bound"), inner[1])


def _says_otherwise(source: object) -> bool:
    return hasattr(source, "__wrapped__") or hasattr(source, "__signature__")


# -- worked out ------------------------------------------------------------------------------------------


def _made(source: SourceFunction) -> Passing:
    if not callable(source):
        raise ConfigError(
            f"a loader is a function, not a {type(source).__name__}: give the function itself, or a lambda around it"
        )
    refuse_generator(source, "the loader")
    try:
        parameters, by_name, bound = _parameters(source)
    except ValueError:  # a builtin that does not say
        return Passing((0,), ())
    taken = {*bound, *(p.name for p in parameters if p.kind not in (_ARGS, _KWARGS))}
    remaining = [i for i, name in enumerate(_NAMES) if name not in taken]
    positional: list[int] = []
    named: dict[str, int] = {}
    lacking: list[str] = []
    takes_previous = False
    for p in parameters:
        required = p.default is p.empty
        if p.kind is _ARGS:
            if not by_name:
                positional += remaining
                remaining.clear()
        elif p.kind is _KWARGS:
            named.update((_NAMES[i], i) for i in remaining)
        elif p.name == PREVIOUS and p.kind is not _BY_POSITION_ONLY and p.name not in bound:
            takes_previous = by_name = True  # what it is comes later, so what follows can't go by position
        elif p.name in _NAMES and p.name not in bound:
            by_name = _give(_NAMES.index(p.name), p, by_name, positional, named)
        elif required and remaining and p.kind is not _BY_NAME_ONLY:
            by_name = _give(remaining.pop(0), p, by_name, positional, named)
        elif required:
            lacking.append(p.name)
        else:
            by_name = True  # it keeps its default: what follows can't go by position
    if lacking:
        raise ConfigError(
            f"the loader {name_of(source)} needs {', '.join(lacking)} too: a loader is given resource_id, tenant_id "
            "and ctx, by these names or in this order. Name its parameters so, and give it the rest by "
            "functools.partial or a lambda"
        )
    return Passing(tuple(positional), tuple(named.items()), takes_previous)


def _give(
    index: int, parameter: inspect.Parameter, by_name: bool, positional: list[int], named: dict[str, int]
) -> bool:
    """Give a parameter its value; whether those that follow must be given theirs by name."""
    by_name = by_name or parameter.kind is _BY_NAME_ONLY
    if not by_name:
        positional.append(index)
    elif parameter.kind is not _BY_POSITION_ONLY:
        named[parameter.name] = index
    return by_name


def _parameters(source: Any) -> tuple[list[inspect.Parameter], bool, Collection[str]]:
    """The parameters of a source, whether they must be given by name, and which a partial has bound by name;
    `ValueError` where it does not say.

    A wrapper with parameters of its own is called with those. One that takes any passes them on to what it wraps.
    """
    wrapped = getattr(source, "__wrapped__", None)
    if not callable(wrapped):
        bound: Collection[str] = source.keywords if isinstance(source, functools.partial) else ()
        return list(signature_of(source).parameters.values()), False, bound
    by_name = False
    try:
        own = list(signature_of(source, follow_wrapped=False).parameters.values())
    except ValueError:  # such as `functools.lru_cache`, which takes any
        pass
    else:
        kinds = [p.kind for p in own]
        if _ARGS not in kinds and _KWARGS not in kinds:
            return own, False, ()
        by_name = _ARGS not in kinds
    if isinstance(source, MethodType):
        wrapped = MethodType(wrapped, source.__self__)
    parameters, inner_by_name, bound = _parameters(wrapped)
    return parameters, by_name or inner_by_name, bound
