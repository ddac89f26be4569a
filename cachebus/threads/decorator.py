"""Sync functions whose results are cached, and what can be done with them: key, get, invalidate, refresh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

from cachebus.decided import Answer, Decided, Previous
from cachebus.declaration import CachedOptions, Declared, declaration_of
from cachebus.decorator import ResultIds
from cachebus.errors import ConfigError
from cachebus.receipt import Receipt

if TYPE_CHECKING:
    from cachebus.threads.cache import BlockingCache

P = ParamSpec("P")
R = ParamSpec("R")
T = TypeVar("T")
Owner = TypeVar("Owner")


class BlockingFunction(Generic[P, T]):
    """A sync function whose results are cached. It is called as the function is; `.key`, `.get`, `.invalidate` and
    `.refresh` take the same arguments. Made by `BlockingCache.cached`."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, T]

    def __init__(self, declared: Declared, function: Callable[P, T]) -> None:
        functools.update_wrapper(self, function)
        self._declared, self._bound = declared, declared.args
        self.__signature__ = declared.shown

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, from the cache or from the function. Raises what `Cache.get_or_load` does."""
        declared, given = self._declared, (*self._bound, *args)
        ids, tags, _ = declared.named(given, kwargs)

        def load() -> Any:
            return declared.function(*given, **kwargs)

        def load_told(previous: Previous[T] | None) -> Any:
            return declared.function(*given, previous=previous, **kwargs)

        loader = load_told if declared.takes_previous else load
        result: T = self._cache().get_or_load(loader=loader, ttl=declared.ttl, tags=tags, **ids)
        return result

    def key(self, *args: P.args, **kwargs: P.kwargs) -> ResultIds:
        """The ids under which the result for these arguments is cached, as the verbs of a cache take them:
        `cache.get(**price.key(7))`. `InvalidKey` for arguments that make no id."""
        return cast("ResultIds", self._declared.named((*self._bound, *args), kwargs).ids)

    def get(self, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The cached result, or None: the function is not called. Raises what `Cache.get` does."""
        result: T | None = self._cache().get(**self.key(*args, **kwargs))
        return result

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Say that the result for these arguments is replaced, everywhere; see `Cache.invalidate`."""
        return self._cache().invalidate(**self.key(*args, **kwargs))

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Invalidate the result for these arguments, and call the function anew, or join who does so since."""
        self.invalidate(*args, **kwargs)
        return self(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: BlockingFunction[Concatenate[Owner, R], T], instance: Owner, owner: type | None = None
    ) -> BlockingFunction[R, T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Self: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """As a method: the same with its instance."""
        if instance is None:
            return self
        bound: BlockingFunction[Any, T] = BlockingFunction.__new__(BlockingFunction)
        given = (*self._bound, instance)
        bound.__dict__.update(self.__dict__, _bound=given, __signature__=self._declared.shown_bound)
        return bound

    def __set_name__(self, owner: type, name: str) -> None:
        """The class that it is a method of: its own name, and Self, are there from now on."""
        self._declared.results.belong_to(owner)

    def __repr__(self) -> str:
        return f"<cached {self._declared.name}>"

    def _cache(self) -> BlockingCache:
        cache: BlockingCache = self._declared.results.cache()
        return cache


class BlockingDecorator(Protocol):
    """What `cache.cached(...)` gives: it is put above a sync function or method."""

    @overload
    def __call__(self, function: Callable[P, Decided[T]]) -> BlockingFunction[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, Decided[T] | None]) -> BlockingFunction[P, T | None]: ...
    @overload
    def __call__(self, function: Callable[P, Answer[T]]) -> BlockingFunction[P, T]: ...
    def __call__(self, function: Any) -> Any:
        """The cached function; `ConfigError`."""


def decorator_of(options: CachedOptions) -> BlockingDecorator:
    """What makes cached functions of sync ones."""

    def decorate(function: Any) -> Any:
        if isinstance(function, staticmethod | classmethod):
            raise ConfigError(
                f"{function.__func__.__qualname__}: cached goes below @staticmethod, and class methods can't be cached "
                "here: cache a function that takes the class"
            )
        return BlockingFunction(declaration_of(function, options), function)

    return decorate
