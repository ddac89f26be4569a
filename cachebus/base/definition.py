"""What a caller's function comes down to, and where it was written."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

from cachebus.base.parameters import PREVIOUS, name_of
from cachebus.errors import ConfigError


class Callee(NamedTuple):
    """A function, and the arguments that are bound to it."""

    function: Any
    args: tuple[Any, ...]
    keywords: dict[str, Any]


def callee_of(source: Callable[..., Any]) -> Callee:
    """What a partial, a bound method or an object with `__call__` calls, and with what. What wraps another function is
    itself one."""
    if isinstance(source, functools.partial):
        function, args, keywords = callee_of(source.func)
        return Callee(function, (*args, *source.args), keywords | source.keywords)
    if isinstance(source, MethodType):
        function, args, keywords = callee_of(source.__func__)
        return Callee(function, (*args, source.__self__), keywords)
    called = type(source).__call__
    if isinstance(source, FunctionType | type) or hasattr(source, "__wrapped__") or type(called) is not FunctionType:
        return Callee(source, (), {})
    return Callee(called, (source,), {})


def written(source: Callable[..., Any]) -> Any:
    """The function that was written, below what wraps it."""
    return inspect.unwrap(callee_of(source).function)


@dataclass(frozen=True, slots=True)
class Definition:
    """Where a function or a class was written, and under which name."""

    name: str
    module: str
    file: str | None
    code: CodeType | None

    @classmethod
    def of(cls, source: Callable[..., Any]) -> Definition:
        """Of a function, or whatever calls one."""
        inner = written(source)
        module = str(getattr(inner, "__module__", None))
        file = getattr(sys.modules.get(module), "__file__", None)
        return cls(name_of(source), module, file, getattr(inner, "__code__", None))

    def is_of(self, other: Definition) -> bool:
        """Whether both are one, as of a module that was loaded anew, or that is the program and is imported too."""
        is_of_one_file = self.file is not None and self.file == other.file
        return self.name == other.name and (self.module == other.module or is_of_one_file)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def without_previous(signature: inspect.Signature, parts: Callee, name: str) -> tuple[inspect.Signature, bool]:
    """The signature as calls see it, and whether the function is told what is still cached."""
    previous = signature.parameters.get(PREVIOUS)
    if previous is None or previous.kind in (previous.POSITIONAL_ONLY, previous.VAR_POSITIONAL, previous.VAR_KEYWORD):
        return signature, False
    if PREVIOUS in parts.keywords:
        return signature, False
    behind = list(signature.parameters.values())[list(signature.parameters).index(PREVIOUS) + 1 :]
    if previous.kind is not previous.KEYWORD_ONLY and any(p.kind is previous.kind for p in behind):
        raise ConfigError(f"{name}: put `previous` behind all arguments that calls give: they may give them by place")
    return signature.replace(parameters=[p for p in signature.parameters.values() if p is not previous]), True
