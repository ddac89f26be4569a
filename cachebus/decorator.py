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
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    NotRequired,
    ParamSpec,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    cast,
    overload,
)

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id
from cachebus.decided import Answer, Decided, Previous
from cachebus.declaration import Declared, NamedCall
from cachebus.reading.source import awaited
from cachebus.receipt import Receipt

P = ParamSpec("P")
R = ParamSpec("R")
T = TypeVar("T")
Owner = TypeVar("Owner")
CONTEXT_IDS: Final[tuple[Literal["agent_id", "conversation_id", "collection_id"], ...]] = (
    "agent_id",
    "conversation_id",
    "collection_id",
)


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
    `.refresh` take the same arguments; `.with_options` gives the same function with what the verbs of a cache take
    besides. Made by `@cached`."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, Awaitable[T]]

    def __init__(self, declared: Declared, function: Callable[P, Awaitable[T]]) -> None:
        functools.update_wrapper(self, function)
        self._declared, self._bound, self._calling = declared, declared.args, declared.calling
        self.__signature__ = declared.shown
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, from the cache or from the function. Raises what `Cache.get_or_load` does."""
        declared, given = self._declared, (*self._bound, *args)
        ids, tags, arguments = self._named(given, kwargs)
        calling = self._calling

        async def load() -> Any:
            return await awaited(declared.function(*given, **kwargs), declared.function)

        async def load_told(previous: Previous[T] | None) -> Any:
            return await awaited(declared.function(*given, previous=previous, **kwargs), declared.function)

        result: T = await declared.results.cache().get_or_load(
            loader=load_told if declared.takes_previous else load,
            ttl=declared.ttl,
            tags=tags,
            after=self._receipt(arguments),
            search_hierarchy=calling.search_hierarchy,
            use_memory=calling.use_memory,
            **ids,
        )
        return result

    def with_options(
        self,
        *,
        after: Receipt | str | None = None,
        wait: Wait | None = None,
        reason: str | None = None,
        contexts: ContextMatch | None = None,
        search_hierarchy: bool | None = None,
        use_memory: bool | None = None,
    ) -> Self:
        """The same function, whose calls and verbs take these as those of a cache do. None leaves one as it is here:
        `await price.with_options(after=receipt)(7)`, `await price.with_options(wait="nodes").invalidate(7)`.

        - `after`, `search_hierarchy`, `use_memory`: of calls and of `.get`
        - `wait`, `reason`, `contexts`: of `.invalidate` and `.refresh`; "all" leaves context ids out
        """
        given = {
            "after": after,
            "wait": wait,
            "reason": reason,
            "contexts": contexts,
            "search_hierarchy": search_hierarchy,
            "use_memory": use_memory,
        }
        made = self.__class__.__new__(self.__class__)
        told: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        made.__dict__.update(self.__dict__, _calling=self._calling._replace(**told))
        return made

    def key(self, *args: P.args, **kwargs: P.kwargs) -> ResultIds:
        """The ids under which the result for these arguments is cached, as the verbs of a cache take them:
        `await cache.get(**price.key(7))`. `InvalidKey` for arguments that make no id."""
        return cast("ResultIds", self._named((*self._bound, *args), kwargs).ids)

    async def get(self, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The cached result, or None: the function is not called. Raises what `Cache.get` does."""
        ids, _, arguments = self._named((*self._bound, *args), kwargs)
        search, use_memory = self._calling.search_hierarchy, self._calling.use_memory
        cache, after = self._declared.results.cache(), self._receipt(arguments)
        found: T | None = await cache.get(**ids, after=after, search_hierarchy=search, use_memory=use_memory)
        return found

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Say that the result for these arguments is replaced, everywhere; see `Cache.invalidate`."""
        ids, calling = self.key(*args, **kwargs), self._calling
        if calling.contexts == "all":
            for name in CONTEXT_IDS:
                ids.pop(name, None)
        cache = self._declared.results.cache()
        receipt: Receipt = await cache.invalidate(
            **ids, contexts=calling.contexts, wait=calling.wait, reason=calling.reason
        )
        return receipt

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

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NamedCall:
        """What these arguments say."""
        return self._declared.named(args, kwargs)

    def _receipt(self, arguments: Mapping[str, Any]) -> Receipt | str | None:
        """The receipt whose write a call with these arguments must see."""
        after = self._calling.after
        return self._declared.receipt(arguments) if after is None else after


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
