"""Whose request this is: the ambient tenant, agent, conversation and collection, and metrics gathered on the way.

1. `with Context(...)` puts a frame onto those of the task; `current()` is the innermost one's context.
2. `@with_context` enters one that is made of a function's own arguments.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from cachebus.base.ids import Id, check_part, text_of
from cachebus.base.parameters import signature_of
from cachebus.errors import ConfigError, InvalidKey, TenantRequired

P = ParamSpec("P")
T = TypeVar("T")
IDS = ("tenant_id", "agent_id", "conversation_id", "collection_id")
Wanted = tuple[tuple[str, bool], ...]
Ids = tuple[Id | None, Id | None, Id | None, Id | None]
_NO_IDS: Ids = (None, None, None, None)


class Context:
    """The ids of a request; ambient inside `with Context(tenant_id="acme"):` (or `async with`).

    - the ids: str, int or UUID; None is not given
    - `metrics`: a plain dict that belongs to this context

    Entered inside another context of the same tenant, it takes over the ids that it lacks, in what `as` and `current()`
    give. Ids of another tenant are never taken over. The object itself stays as it was made, so it may be entered
    again, anywhere and in several tasks at once. Raises `InvalidKey` for what is no id.
    """

    __slots__ = ("agent_id", "collection_id", "conversation_id", "metrics", "tenant_id")

    def __init__(
        self,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
    ) -> None:
        self.tenant_id = tenant_id
        self.agent_id = agent_id
        self.conversation_id = conversation_id
        self.collection_id = collection_id
        for name, part in zip(IDS, self.ids, strict=True):
            if part is not None:
                check_part(name, part)
        self.metrics: dict[str, Any] = {}

    def add_metric(self, name: str, value: Any) -> None:
        """Note a figure of this request, in the place of an earlier one of this name."""
        self.metrics[name] = value

    def has_tenant_id(self) -> bool:
        """Whether the tenant is known."""
        return self.tenant_id is not None

    def get_tenant_id(self) -> Id:
        """Returns the tenant. Raises `TenantRequired` when there is none."""
        if self.tenant_id is None:
            raise TenantRequired("this context has no tenant_id")
        return self.tenant_id

    @property
    def ids(self) -> Ids:
        """Tenant, agent, conversation and collection id, in this order."""
        return self.tenant_id, self.agent_id, self.conversation_id, self.collection_id

    def __enter__(self) -> Context:
        outer = _frame.get()
        ids = self.ids if outer is None else _inherited(self.ids, outer.context.ids)
        context = self
        if ids != self.ids:
            context = Context(*ids)
            context.metrics = self.metrics
        _frame.set(_Frame(context, self, outer))
        return context

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        frame = _frame.get()
        # In another task than it was entered in (some test fixtures do so) there is nothing to take back.
        if frame is not None and frame.entered is self:
            _frame.set(frame.outer)

    async def __aenter__(self) -> Context:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        given = (f"{name}={getattr(self, name)!r}" for name in IDS if getattr(self, name) is not None)
        return f"Context({', '.join(given)})"


class _Frame(NamedTuple):
    """A context that was entered. Not a `ContextVar` token: those are of use only in the task that made them."""

    context: Context
    entered: Context
    outer: _Frame | None


_frame: ContextVar[_Frame | None] = ContextVar("cachebus_context", default=None)


def current() -> Context | None:
    """The surrounding context, if there is one."""
    frame = _frame.get()
    return None if frame is None else frame.context


def _inherited(given: Ids, around: Ids) -> Ids:
    """The ids given, those that are missing from around, unless that is another tenant's."""
    if _contradict(given[0], around[0]):
        return given
    tenant, agent, conversation, collection = (
        ambient if own is None else own for own, ambient in zip(given, around, strict=True)
    )
    return tenant, agent, conversation, collection


def _contradict(one: Id | None, other: Id | None) -> bool:
    """Whether both are given and are not one and the same tenant, as 7 and "7" are."""
    return one is not None and other is not None and text_of("tenant_id", one) != text_of("tenant_id", other)


def _in_text(ids: Ids) -> list[str | None]:
    return [None if part is None else text_of(name, part) for name, part in zip(IDS, ids, strict=True)]


def with_context(
    tenant: bool = True,
    agent: bool = False,
    conversation: bool = False,
    collection: bool = False,
    validate_tenant: bool = True,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Run a function, sync or async, inside a `Context` made of its own arguments.

    - `tenant`, `agent`, `conversation`, `collection`: whether this id is required. It is the function's argument of
      that name (`tenant_id`, ...) if that is given, else the surrounding context's
    - `validate_tenant`: refuse a tenant that contradicts the surrounding one; False lets it change the tenant

    The other ids are those of the surrounding context; where nothing differs from it the function runs in that one
    itself. A parameter `ctx` gets the context if none was given; a `Context` given there counts as surrounding.

    Returns the decorator; it raises `ConfigError` for a generator, which would run outside. The function's calls raise
    `TenantRequired` or `InvalidKey` where a required id is missing, and `InvalidKey` for an argument that is no id.
    """
    wanted = tuple(zip(IDS, (tenant, agent, conversation, collection), strict=True))

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(f"with_context can't run {function.__qualname__}: a generator; enter a Context inside it")
        shape = _Shape(function, wanted, validate_tenant)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                context, bound = shape.prepare(args, kwargs)
                with context:
                    return await function(*bound.args, **bound.kwargs)

            return cast("Callable[P, T]", run_async)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            context, bound = shape.prepare(args, kwargs)
            with context:
                return function(*bound.args, **bound.kwargs)

        return run

    return decorate


class _Shape:
    """What a decorated function takes, looked at once."""

    def __init__(self, function: Callable[..., Any], wanted: Wanted, validate: bool) -> None:
        self._name = function.__qualname__
        self._signature = signature_of(function)
        self._wanted = wanted
        self._validate = validate
        parameters = self._signature.parameters.values()
        self._takes_ctx = any(p.name == "ctx" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
        self._rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), "")

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Context, inspect.BoundArguments]:
        """The context to run in, and the arguments to run with."""
        bound = self._signature.bind_partial(*args, **kwargs)
        arguments = {**bound.arguments.get(self._rest, {}), **bound.arguments}
        given = arguments.get("ctx")
        surrounding = [c for c in (given, current()) if isinstance(c, Context)]
        around = _NO_IDS
        for context in reversed(surrounding):
            if self._validate and _contradict(context.tenant_id, around[0]):
                raise InvalidKey(f"the ctx given to {self._name} contradicts the surrounding tenant")
            around = _inherited(context.ids, around)
        ids = self._ids(arguments, around)
        # A surrounding one itself where it says the same: what is measured inside belongs to the request.
        text = _in_text(ids)
        context = next((c for c in surrounding if _in_text(c.ids) == text), None) or Context(*ids)
        if self._takes_ctx and given is None:
            bound.arguments["ctx"] = context
        return context, bound

    def _ids(self, arguments: dict[str, Any], around: Ids) -> Ids:
        tenant, agent, conversation, collection = (
            arguments.get(name) if asked else None for name, asked in self._wanted
        )
        for name, part in zip(IDS, (tenant, agent, conversation, collection), strict=True):
            if part is not None:
                check_part(f"{name} of {self._name}", part)
        if self._validate and _contradict(tenant, around[0]):
            raise InvalidKey(f"tenant_id of {self._name} contradicts the surrounding context")
        ids = _inherited((tenant, agent, conversation, collection), around)
        for (name, asked), found in zip(self._wanted, ids, strict=True):
            if asked and found is None:
                kind = TenantRequired if name == "tenant_id" else InvalidKey
                raise kind(f"{self._name} needs {name}: give it as an argument, or call it inside a Context")
        return ids
