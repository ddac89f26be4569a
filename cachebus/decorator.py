"""`@cached`: an async function whose results are cached, and what can be done with them: key, get, invalidate, refresh.

1. *Declared*, when the function is decorated: its templates, and everything that is wrong with them
   (`cachebus.declaration`).
2. *Called*: the arguments fill the templates, and `Cache.get_or_load` does the rest, with the function as its loader.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, Generic, NotRequired, ParamSpec, Protocol, Self, TypedDict, TypeVar, overload

from cachebus.base.ids import Id
from cachebus.decided import Answer, Decided, Previous
from cachebus.declaration import Declared
from cachebus.reading.source import awaited
from cachebus.receipt import Receipt

P = ParamSpec("P")
R = ParamSpec("R")
T = TypeVar("T")
Owner = TypeVar("Owner")


class ResultIds(TypedDict):
    """The ids of a result, as the verbs of a cache take them."""

    data_type: str
    resource_id: Id
    tenant_id: NotRequired[Id | None]
    agent_id: NotRequired[Id | None]
    conversation_id: NotRequired[Id | None]
    collection_id: NotRequired[Id | None]


class CachedFunction(Generic[P, T]):
    """An async function whose results are cached. It is called as the function is; `.key`, `.get`, `.invalidate` and
    `.refresh` take the same arguments. Made by `@cached`."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, Awaitable[T]]

    def __init__(self, declared: Declared, function: Callable[P, Awaitable[T]]) -> None:
        functools.update_wrapper(self, function)
        self._declared, self._bound = declared, declared.args
        self.__signature__ = declared.shown
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, from the cache or from the function. Raises what `Cache.get_or_load` does."""
        declared, given = self._declared, (*self._bound, *args)
        ids, tags = self._named(given, kwargs)

        async def load() -> Any:
            return await awaited(declared.function(*given, **kwargs), declared.function)

        async def load_told(previous: Previous[T] | None) -> Any:
            return await awaited(declared.function(*given, previous=previous, **kwargs), declared.function)

        loader = load_told if declared.takes_previous else load
        result: T = await declared.results.cache().get_or_load(loader=loader, ttl=declared.ttl, tags=tags, **ids)
        return result

    def key(self, *args: P.args, **kwargs: P.kwargs) -> ResultIds:
        """The ids under which the result for these arguments is cached, as the verbs of a cache take them:
        `await cache.get(**price.key(7))`. `InvalidKey` for arguments that make no id."""
        return self._named((*self._bound, *args), kwargs)[0]

    async def get(self, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The cached result, or None: the function is not called. Raises what `Cache.get` does."""
        result: T | None = await self._declared.results.cache().get(**self.key(*args, **kwargs))
        return result

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Say that the result for these arguments is replaced, everywhere; see `Cache.invalidate`."""
        return await self._declared.results.cache().invalidate(**self.key(*args, **kwargs))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Invalidate the result for these arguments, and call the function anew, or join who does so since."""
        await self.invalidate(*args, **kwargs)
        return await self(*args, **kwargs)

    # Checkers see a static method as a plain function: what tells it from a method is its first parameter.
    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[Owner, R], T], instance: Owner, owner: type | None = None
    ) -> CachedFunction[R, T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Self: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """As a method: the same with its instance, or with its class where a classmethod is what is wrapped."""
        return self if instance is None else self._bound_to(instance)

    def _bound_to(self, first: object) -> CachedFunction[Any, T]:
        """The same with its first argument given. At each access of a method: all but that is there already."""
        bound: CachedFunction[Any, T] = CachedFunction.__new__(CachedFunction)
        given = (*self._bound, first) if self._bound else (first,)
        bound.__dict__.update(self.__dict__, _bound=given, __signature__=self._declared.shown_bound)
        return bound

    def __set_name__(self, owner: type, name: str) -> None:
        """The class that it is a method of: its own name, and Self, are there from now on."""
        self._declared.results.belong_to(owner)

    def __repr__(self) -> str:
        return f"<cached {self._declared.name}>"

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[ResultIds, list[Any]]:
        """The ids and the tags for these arguments."""
        declared = self._declared
        if declared.keywords:
            kwargs = {**declared.keywords, **kwargs}
        bound = declared.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {**bound.arguments.get(declared.rest or "", {}), **bound.arguments}
        ids: Any = {"data_type": declared.data_type}
        ids |= {name: template.filled_in(arguments) for name, template in declared.ids.items()}
        if declared.hashed is not None:
            ids["resource_id"] = declared.hashed.id(bound.arguments)
        tags = [tag for tag in (template.filled_in(arguments) for template in declared.tags) if tag is not None]
        return ids, tags


class StaticFunction(CachedFunction[P, T]):
    """A static method's: it is bound to nothing."""

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """Itself."""
        return self


class ClassFunction(CachedFunction[Concatenate[type[Any], P], T], Generic[P, T]):
    """A class method's: it is bound to the class, also where it is asked of the class.

    Checkers tell it by its first parameter, a class, for they see no `classmethod` below another decorator. A plain
    function with such a parameter they take for one, too, and want that argument by its place."""

    def __get__(self, instance: object, owner: type | None = None) -> CachedFunction[P, T]:  # type: ignore[override]
        """The same with the class."""
        return self._bound_to(owner or type(instance))


class Decorator(Protocol):
    """What `@cached(...)` gives: it is put above a function, a method, a class method or a static one."""

    @overload
    def __call__(self, function: Callable[Concatenate[type[Any], P], Awaitable[Decided[T]]]) -> ClassFunction[P, T]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[type[Any], P], Awaitable[Answer[T]]]) -> ClassFunction[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[Decided[T]]]) -> CachedFunction[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[Decided[T] | None]]) -> CachedFunction[P, T | None]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[Answer[T]]]) -> CachedFunction[P, T]: ...
    def __call__(self, function: Any) -> Any:
        """The cached function; `ConfigError`."""
