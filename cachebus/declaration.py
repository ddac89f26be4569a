"""What `@cached` is told of a function: what is wrong with any of it is said when the function is decorated.

1. *Ids*: templates over its arguments, or a hash of those that are in none. All by which results may differ must be in
   an id: what a partial or a method has bound, what the function takes from around it, the class that it is called on.
2. *Results*: as what they come.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.definition import Callee, Definition, callee_of, without_previous, written
from cachebus.base.hashing import generate_resource_id_hash
from cachebus.base.ids import check_part
from cachebus.base.lifetimes import TAGS_MAX, check_ttl
from cachebus.base.parameters import check_async, check_sync, name_of, signature_of
from cachebus.errors import ConfigError, InvalidKey, NotSerializable
from cachebus.keys.naming import ArgumentTemplate
from cachebus.keys.plan import trouble_of_reason
from cachebus.manager import CacheManager, current_cache
from cachebus.receipt import Receipt
from cachebus.settings import Settings
from cachebus.values import check_model
from cachebus.values.results import owner_of, returned_by
from cachebus.writing.confirm import check_wait


class HoldsResults(Protocol):
    """A cache in which a function may have its results."""

    settings: Settings

    def decode_into(self, data_type: str, model: Any, asker: Definition) -> None:
        """As `Cache.decode_into`."""


class CachedOptions(NamedTuple):
    """What `@cached` takes beside the function, as its caller gave it."""

    data_type: str
    templates: Mapping[str, str | None]
    tags: Sequence[str]
    ttl: float | None
    ignore: Sequence[str]
    cache: HoldsResults | None
    is_sync: bool = False
    """Whether it is for sync functions, else for async ones."""
    after: str | Callable[[], Receipt | str | None] | None = None
    wait: Wait | None = None
    reason: str | None = None


class CallOptions(NamedTuple):
    """How the verbs of a cached function call those of the cache, beside ids, tags and ttl."""

    after: Receipt | str | None = None
    """None is what the declaration says."""
    wait: Wait | None = None
    reason: str | None = None
    contexts: ContextMatch = "exact"
    search_hierarchy: bool = False
    use_memory: bool = True


@dataclass(frozen=True, slots=True)
class Hashed:
    """The resource id where there is no template: the function's name, and a hash of arguments."""

    data_type: str
    name: str
    arguments: Sequence[str]
    """Those that count."""
    owner: str | None
    """The argument that is the instance or the class, where the class counts that a method is called on."""
    cache: HoldsResults | None
    names: WeakKeyDictionary[type, str] = field(default_factory=WeakKeyDictionary)
    """By the classes seen so far."""

    def id(self, arguments: Mapping[str, Any]) -> str:
        """The id for these arguments; `NotSerializable` for one that can't be hashed."""
        hashed = generate_resource_id_hash({name: arguments[name] for name in self.arguments})
        return f"{self.name if self.owner is None else self._named(arguments[self.owner])}:{hashed}"

    def _named(self, owner: Any) -> str:
        kind = owner if isinstance(owner, type) else type(owner)
        return self.names.get(kind) or self._name(kind)

    def _name(self, kind: type) -> str:
        """The function's name, and that of the class where it is not the one that the function stands in."""
        is_own = kind.__qualname__ == self.name.rpartition(".")[0]
        name = self.name if is_own else f"{self.name}[{kind.__qualname__}]"
        self._check_alone(kind, name)
        CacheManager._claim(self.data_type, dataclasses.replace(Definition.of(kind), name=name), self.cache)
        self.names[kind] = name
        return name

    def _check_alone(self, kind: type, name: str) -> None:
        """`ConfigError` where there is another class of that name; not for one whose module was loaded anew, nor where
        that is gone, though not yet collected."""
        if name not in self.names.values() or kind is _found(kind.__module__, kind.__qualname__):
            return
        gc.collect()
        if name in self.names.values():
            raise ConfigError(
                f"two classes are called {kind.__module__}.{kind.__qualname__}, and would share results of "
                f"{self.name}, cached by that name: give them names of their own, write what tells them apart into a "
                f"resource_id, or give ignore={(self.owner,)!r} where they are to share"
            )


def _found(module: str, qualname: str) -> object:
    """What a module has under a name."""
    found: object = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


class Results:
    """As what a function's results come: what its annotation says, read when it is decorated; where names are not there
    yet, when the process-wide cache is opened, else at the first call."""

    def __init__(self, source: Callable[..., Any], data_type: str, cache: HoldsResults | None) -> None:
        self._definition, self._returned = Definition.of(source), returned_by(source)
        self._data_type, self._cache = data_type, cache
        self._bound_to = owner_of(source)
        self._owner = self._bound_to
        try:
            if self._returned is not None and self._returned.lacks_class:
                raise _Unread
            self.settle()
        except _Unread:
            if cache is None:
                CacheManager._settle_later(self)

    def belong_to(self, owner: type) -> None:
        """Have a class be the one that the function is a method of, unless it is bound to another."""
        self._owner = self._bound_to or owner

    def settle(self) -> None:
        """Have what the annotation promises be what comes; `ConfigError` where it still can't be read."""
        self._decode_into(self._model())
        cache = self._cache
        self.cache = current_cache if cache is None else lambda: cache  # type: ignore[method-assign]

    def cache(self) -> Any:
        """The cache for a call; `ConfigError`."""
        self.settle()
        return self.cache()

    def _model(self) -> Any:
        try:
            return None if self._returned is None else self._returned.model(self._owner)
        except Exception as error:  # noqa: BLE001 (of any expression)
            annotation = getattr(self._returned, "annotation", None)
            raise _Unread(
                f"{self._definition} says that it returns {annotation!r}, which can't be read ({type(error).__name__}: "
                f"{error}): results are to come as that. Import what it names for the program too, and not for type "
                "checkers alone; or say dict[str, Any]"
            ) from None

    def _decode_into(self, model: Any) -> None:
        if model is None:
            return
        try:
            check_model(model)
        except ConfigError as error:
            raise ConfigError(
                f"{self._definition}: {error}; say what comes back, such as list[...] or dict[...]"
            ) from None
        (CacheManager if self._cache is None else self._cache).decode_into(self._data_type, model, self._definition)


class _Unread(ConfigError):
    """An annotation that can't be read, or not yet."""


class NamedCall(NamedTuple):
    """What the arguments of one call say."""

    ids: dict[str, Any]
    tags: list[Any]
    arguments: Mapping[str, Any]
    """All of them, by their names."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What `@cached` was told of a function."""

    data_type: str
    name: str
    function: Callable[..., Any]
    """What is called, with `args` in front of the call's own."""
    args: tuple[Any, ...]
    keywords: Mapping[str, Any]
    """What a partial has bound: arguments like others."""
    signature: inspect.Signature
    """Of all of them."""
    shown: inspect.Signature
    """Of what was decorated."""
    shown_bound: inspect.Signature
    """Without its first parameter, as of a method."""
    rest: str | None
    """The name of its `**keywords`, if it takes any."""
    ids: Mapping[str, ArgumentTemplate]
    tags: Sequence[ArgumentTemplate]
    hashed: Hashed | None
    ttl: float | None
    results: Results
    after: ArgumentTemplate | Callable[[], Receipt | str | None] | None
    """Which receipt's write a call must see: an argument, or what gives it."""
    calling: CallOptions
    takes_previous: bool = False
    """Whether it has a parameter `previous`, which calls do not give: it is what is still cached."""

    def receipt(self, arguments: Mapping[str, Any]) -> Receipt | str | None:
        """The receipt whose write a call with these arguments must see."""
        if isinstance(self.after, ArgumentTemplate):
            found: Receipt | str | None = self.after.filled_in(arguments)
            return found
        return None if self.after is None else self.after()

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NamedCall:
        """What these arguments say of the result."""
        if self.keywords:
            kwargs = {**self.keywords, **kwargs}
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {**bound.arguments.get(self.rest or "", {}), **bound.arguments}
        ids: dict[str, Any] = {"data_type": self.data_type}
        ids |= {name: template.filled_in(arguments) for name, template in self.ids.items()}
        if self.hashed is not None:
            ids["resource_id"] = self.hashed.id(bound.arguments)
        tags = [tag for tag in (template.filled_in(arguments) for template in self.tags) if tag is not None]
        return NamedCall(ids, tags, arguments)


def declaration_of(source: Callable[..., Any], options: CachedOptions, *, is_of_class: bool = False) -> Declared:
    """What is to be known of a function to cache its results; `ConfigError` for what is wrong with any of it.

    `is_of_class`: it is a class method's.
    """
    (check_sync if options.is_sync else check_async)(source)
    parts, name = callee_of(source), name_of(source)
    data_type, ttl = _checked(options, name)
    signature, takes_previous = without_previous(_signature(parts.function, name), parts, name)
    shown, _ = without_previous(_signature(source, name), parts, name)
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    known = None if rest else signature.parameters
    ids = {part: ArgumentTemplate(text, known, name) for part, text in options.templates.items() if text is not None}
    tags = [ArgumentTemplate(text, known, name) for text in options.tags]
    for part, template in (*ids.items(), *(("tag", template) for template in tags)):
        template.check(part)
    after = _after(options.after, known, name)
    function = functools.partial(parts.function, **parts.keywords) if parts.keywords else parts.function
    counting = _Counting(name, parts, signature, _first(parts, signature, is_of_class=is_of_class), options.ignore)
    counting.check_ignore()
    told = (*ids.values(), *tags, after) if isinstance(after, ArgumentTemplate) else (*ids.values(), *tags)
    named = {argument for template in told for argument in template.arguments}
    if "resource_id" in ids:
        hashed = None
        counting.check_named(named, is_of_class=is_of_class)
    else:
        hashed = counting.hashed(options, named)
        CacheManager._claim(data_type, dataclasses.replace(Definition.of(source), name=name), options.cache)
    return Declared(
        data_type=data_type,
        name=name,
        function=function,
        args=parts.args,
        keywords=parts.keywords,
        signature=signature,
        shown=shown,
        shown_bound=shown.replace(parameters=list(shown.parameters.values())[1:]),
        rest=rest,
        ids=ids,
        tags=tags,
        hashed=hashed,
        ttl=ttl,
        results=Results(source, data_type, options.cache),
        after=after,
        calling=CallOptions(wait=options.wait, reason=options.reason),
        takes_previous=takes_previous,
    )


def _after(
    given: str | Callable[[], Receipt | str | None] | None, known: Collection[str] | None, name: str
) -> ArgumentTemplate | Callable[[], Receipt | str | None] | None:
    """What gives the receipt; `ConfigError`."""
    if given is None or (callable(given) and not isinstance(given, str)):
        return given
    template = ArgumentTemplate(given, known, name) if isinstance(given, str) else None
    if template is None or not template.is_alone:
        raise ConfigError(
            f'{name}: after is the argument that holds a receipt, as "{{receipt}}", or a function without arguments '
            "that gives one, as the get of a context variable"
        )
    return template


def _checked(options: CachedOptions, name: str) -> tuple[str, float | None]:
    """The data type and the time to live; `ConfigError`."""
    if isinstance(options.tags, str) or isinstance(options.ignore, str):
        raise ConfigError(f"{name}: tags and ignore are sequences of strings")
    if len(options.tags) > TAGS_MAX:
        raise ConfigError(f"{name}: a value takes at most {TAGS_MAX} tags")
    try:
        ttl = None if options.ttl is None else check_ttl(options.ttl)
        check_wait(options.wait)
        if options.reason is not None and (wrong := trouble_of_reason(options.reason)):
            raise ValueError(f"reason {wrong}")
        return check_part("data_type", options.data_type), ttl
    except (ValueError, InvalidKey) as error:
        raise ConfigError(f"{name}: {error}") from None


def _signature(source: Callable[..., Any], name: str) -> inspect.Signature:
    try:
        return signature_of(source)
    except (TypeError, ValueError) as error:  # whose text may show what a partial has bound
        raise ConfigError(f"{name}: how it is to be called can't be known ({type(error).__name__})") from None


def _first(parts: Callee, signature: inspect.Signature, *, is_of_class: bool) -> str | None:
    """The argument that is the instance or the class of a method, where calls give it."""
    first = next(iter(signature.parameters), None)
    around = name_of(parts.function).rpartition(".")[0]
    is_method = bool(around) and not around.endswith("<locals>") and first == "self"
    return first if not parts.args and (is_method or is_of_class) else None


class _Counting(NamedTuple):
    """By which arguments results may differ."""

    name: str
    parts: Callee
    signature: inspect.Signature
    first: str | None
    ignore: Sequence[str]

    def check_ignore(self) -> None:
        """`ConfigError` for what is no argument, nor taken from around."""
        there = (*self.signature.parameters, *self._taken())
        if unknown := [each for each in self.ignore if each not in there]:
            raise ConfigError(f"{self.name}: ignore names {', '.join(unknown)}, but there is no such argument")

    def check_named(self, named: set[str], *, is_of_class: bool) -> None:
        """`ConfigError` where an argument is in no template. Of an instance none need be."""
        exempt = () if self.first is None or is_of_class else (self.first,)
        missing = [each for each in self.signature.parameters if each not in (*named, *self.ignore, *exempt)]
        if missing:
            shown = f"{missing[0]}.__name__" if missing[0] == self.first else missing[0]
            raise ConfigError(
                f"{self.name}: calls that differ in {', '.join(missing)} alone would share one result: write "
                f"{{{shown}}} into resource_id, or give ignore={tuple(missing)!r} where that is meant"
            )

    def hashed(self, options: CachedOptions, named: set[str]) -> Hashed:
        """The hash of what is in no template; `ConfigError` for what can't be in it."""
        settled = (*named, *self.ignore)
        if taken := [each for each in self._taken() if each not in self.ignore]:
            raise ConfigError(
                f"{self.name}: it takes {', '.join(taken)} from around it, which no argument tells: functions that "
                "are made so with others would share one result. Give a resource_id, or "
                f"ignore={tuple(taken)!r} where that is meant"
            )
        counted = [each for each in self.signature.parameters if each not in settled and each != self.first]
        bound = self.signature.bind_partial(*self.parts.args, **self.parts.keywords)
        for argument, value in bound.arguments.items():
            if argument in counted:
                self._check_hashed(argument, value)
        owner = None if self.first in self.ignore else self.first
        return Hashed(options.data_type, self.name, counted, owner, options.cache)

    def _taken(self) -> list[str]:
        """What the function takes from the functions around it, but for itself."""
        inner = written(self.parts.function)
        own = (getattr(inner, "__name__", None), "__class__")
        return [each for each in getattr(getattr(inner, "__code__", None), "co_freevars", ()) if each not in own]

    def _check_hashed(self, argument: str, value: object) -> None:
        try:
            generate_resource_id_hash(value)
        except NotSerializable:
            raise ConfigError(
                f"{self.name}: {argument} is bound to an object of type {type(value).__qualname__}, which can't be "
                f"hashed: write what tells it apart into a resource_id, such as {{{argument}.name}}, or give "
                f"ignore={(argument,)!r} where results don't differ by it"
            ) from None
