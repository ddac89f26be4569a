"""Whose request this is: the ambient tenant, agent, conversation and collection, and metrics gathered on the way."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

from cachebus.errors import InvalidKey, TenantRequired

P = ParamSpec("P")
T = TypeVar("T")
Id = str | int
IDS = ("tenant_id", "agent_id", "conversation_id", "collection_id")

_current: ContextVar[Context | None] = ContextVar("cachebus_context", default=None)


class Context:
    """The ids of a request; ambient inside `with Context(tenant_id="acme"):` (or `async with`).

    Inside another context, ids that are not given are those of the surrounding one. `metrics` is a plain dict that
    belongs to this context.
    """

    __slots__ = ("_tokens", "agent_id", "collection_id", "conversation_id", "metrics", "tenant_id")

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
        self.metrics: dict[str, Any] = {}
        self._tokens: list[Token[Context | None]] = []

    def add_metric(self, name: str, value: Any) -> None:
        """Note a figure of this request."""
        self.metrics[name] = value

    def has_tenant_id(self) -> bool:
        """Whether the tenant is known."""
        return self.tenant_id is not None

    def get_tenant_id(self) -> Id:
        """The tenant; `TenantRequired` when there is none."""
        if self.tenant_id is None:
            raise TenantRequired("this context has no tenant_id")
        return self.tenant_id

    def __enter__(self) -> Self:
        around = _current.get()
        if around is not None:
            for name in IDS:
                if getattr(self, name) is None:
                    setattr(self, name, getattr(around, name))
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        given = (f"{name}={getattr(self, name)!r}" for name in IDS if getattr(self, name) is not None)
        return f"Context({', '.join(given)})"


def current() -> Context | None:
    """The surrounding context, if there is one."""
    return _current.get()


def with_context(
    tenant: bool = True,
    agent: bool = False,
    conversation: bool = False,
    collection: bool = False,
    validate_tenant: bool = True,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Run a function, sync or async, inside a `Context` made of its own arguments.

    Each id that is asked for is taken from the function's argument of that name (`tenant_id`, ...) if it is given, else
    from the surrounding context; it is required: `TenantRequired` or `InvalidKey`. `validate_tenant`: a tenant argument
    that contradicts the surrounding tenant raises `InvalidKey`. A parameter `ctx` gets the context if none was given.
    """
    wanted = [name for name, asked in zip(IDS, (tenant, agent, conversation, collection), strict=True) if asked]

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Context, inspect.BoundArguments]:
            bound = signature.bind_partial(*args, **kwargs)
            context = _context(function, wanted, bound.arguments, validate_tenant)
            if "ctx" in signature.parameters and bound.arguments.get("ctx") is None:
                bound.arguments["ctx"] = context
            return context, bound

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                context, bound = prepare(args, kwargs)
                with context:
                    return await function(*bound.args, **bound.kwargs)

            return cast("Callable[P, T]", run_async)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            context, bound = prepare(args, kwargs)
            with context:
                return function(*bound.args, **bound.kwargs)

        return run

    return decorate


def _context(function: Callable[..., Any], wanted: list[str], given: dict[str, Any], validate_tenant: bool) -> Context:
    around = given.get("ctx") or _current.get()
    ids: dict[str, Any] = {}
    for name in IDS:
        ambient = None if around is None else getattr(around, name)
        argument = given.get(name) if name in wanted else None
        contradicts = argument is not None and ambient is not None and str(argument) != str(ambient)
        if name == "tenant_id" and validate_tenant and contradicts:
            raise InvalidKey(f"tenant_id contradicts the surrounding context of {function.__qualname__}")
        ids[name] = ambient if argument is None else argument
        if name in wanted and ids[name] is None:
            kind = TenantRequired if name == "tenant_id" else InvalidKey
            raise kind(f"{function.__qualname__} needs {name}: give it as an argument, or call it inside a Context")
    return Context(**ids)
