"""`@cached`: an async function whose results are cached, and what can be done with them: key, get, invalidate, refresh.

1. *Declared*, when the function is decorated: its templates, and everything that is wrong with them.
2. *Called*: the arguments fill the templates, and `Cache.get_or_load` does the rest, with the function as its loader.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, NotRequired, ParamSpec, Protocol, Self, TypedDict, TypeVar, overload

from cachebus.base.hashing import generate_resource_id_hash
from cachebus.base.ids import Id
from cachebus.base.parameters import check_async, name_of
from cachebus.cache import Cache
from cachebus.errors import ConfigError
from cachebus.keys.naming import ArgumentTemplate
from cachebus.manager import CacheManager, current_cache
from cachebus.reading.source import awaited
from cachebus.receipt import Receipt
from cachebus.values.results import model_of

P = ParamSpec("P")
R = ParamSpec("R")
T = TypeVar("T")
Owner = TypeVar("Owner")

_OF_INSTANCE = ("self", "cls")


@dataclass(frozen=True, slots=True)
class Declared:
    """What `@cached` was told of a function."""

    data_type: str
    signature: inspect.Signature
    signature_bound: inspect.Signature
    """Without its first parameter, as of a method."""
    rest: str | None
    """The name of its `**keywords`, if it takes any."""
    ids: Mapping[str, ArgumentTemplate]
    tags: Sequence[ArgumentTemplate]
    keyed_by: Sequence[str]
    """The arguments that the resource id is a hash of; empty where it has a template."""
    ttl: float | None
    cache: Cache | None


class Ids(TypedDict):
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
        self._declared = declared
        self._bound: tuple[Any, ...] = ()
        self.__signature__ = declared.signature
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, from the cache or from the function. Raises what `Cache.get_or_load` does."""
        function, given = self.__wrapped__, (*self._bound, *args)
        ids, tags = self._named(given, kwargs)

        async def load() -> T:
            result: T = await awaited(function(*given, **kwargs), function)
            return result

        ttl = self._declared.ttl
        result: T = await self._cache().get_or_load(loader=load, ttl=ttl, tags=tags, **ids)
        return result

    def key(self, *args: P.args, **kwargs: P.kwargs) -> Ids:
        """The ids under which the result for these arguments is cached, as the verbs of a cache take them:
        `await cache.get(**price.key(7))`. `InvalidKey` for arguments that make no id."""
        return self._named((*self._bound, *args), kwargs)[0]

    async def get(self, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The cached result, or None: the function is not called. Raises what `Cache.get` does."""
        result: T | None = await self._cache().get(**self.key(*args, **kwargs))
        return result

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Say that the result for these arguments is replaced, everywhere; see `Cache.invalidate`."""
        return await self._cache().invalidate(**self.key(*args, **kwargs))

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
        bound.__dict__.update(self.__dict__, _bound=(first,), __signature__=self._declared.signature_bound)
        return bound

    def __repr__(self) -> str:
        return f"<cached {name_of(self.__wrapped__)}>"

    def _cache(self) -> Cache:
        return current_cache() if self._declared.cache is None else self._declared.cache

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Ids, list[Any]]:
        """The ids and the tags for these arguments."""
        declared = self._declared
        bound = declared.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {**bound.arguments.get(declared.rest or "", {}), **bound.arguments}
        ids: Any = {"data_type": declared.data_type}
        ids |= {name: template.filled_in(arguments) for name, template in declared.ids.items()}
        if "resource_id" not in ids:
            hashed = generate_resource_id_hash({name: bound.arguments[name] for name in declared.keyed_by})
            ids["resource_id"] = f"{name_of(self.__wrapped__)}:{hashed}"
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
    def __call__(self, function: Callable[Concatenate[type[Any], P], Awaitable[T]]) -> ClassFunction[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[T]]) -> CachedFunction[P, T]: ...
    def __call__(self, function: Any) -> Any:
        """The cached function; `ConfigError`."""


def declaration_of(
    function: Callable[..., Awaitable[Any]],
    data_type: str,
    templates: Mapping[str, str | None],
    tags: Sequence[str],
    ttl: float | None,
    ignore: Sequence[str],
    cache: Cache | None,
) -> Declared:
    """What is to be known of a function to cache its results; `ConfigError` for what is wrong with any of it."""
    check_async(function)
    name, signature = name_of(function), inspect.signature(function)
    if isinstance(tags, str) or isinstance(ignore, str):
        raise ConfigError(f"{name}: tags and ignore are sequences of strings")
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    known = None if rest else signature.parameters
    ids = {part: ArgumentTemplate(text, known, name) for part, text in templates.items() if text is not None}
    tagged = [ArgumentTemplate(text, known, name) for text in tags]
    named = {argument for template in (*ids.values(), *tagged) for argument in template.arguments}
    left = [each for each in _arguments(function, signature) if each not in ignore]
    if unknown := [each for each in ignore if each not in signature.parameters]:
        raise ConfigError(f"{name}: ignore names {', '.join(unknown)}, but there is no such argument")
    keyed_by = [] if "resource_id" in ids else [each for each in left if each not in named]
    if missing := [each for each in left if each not in named and each not in keyed_by]:
        raise ConfigError(
            f"{name}: calls that differ in {', '.join(missing)} alone would share one result: write "
            f"{{{missing[0]}}} into resource_id, or give ignore={tuple(missing)!r} where that is meant"
        )
    _decode(function, data_type, cache)
    without_first = signature.replace(parameters=list(signature.parameters.values())[1:])
    return Declared(data_type, signature, without_first, rest, ids, tagged, keyed_by, ttl, cache)


def _arguments(function: Callable[..., Any], signature: inspect.Signature) -> list[str]:
    """What may make results differ: all but the instance or class of a method."""
    names = list(signature.parameters)
    around = name_of(function).rpartition(".")[0]
    is_method = around and not around.endswith("<locals>") and names[:1] and names[0] in _OF_INSTANCE
    return names[1:] if is_method else names


def _decode(function: Callable[..., Any], data_type: str, cache: Cache | None) -> None:
    """Have what the annotation promises be what comes."""
    model = model_of(function)
    if model is not None:
        (CacheManager if cache is None else cache).decode_into(data_type, model, name_of(function))
