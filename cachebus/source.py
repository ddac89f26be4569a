"""Calling the caller's own functions: with what they take, sync or async, within limits, again after errors."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Any

from cachebus.errors import ConfigError, LoadTimeout

Source = Callable[..., Any]
Bound = Callable[[], Any]
_NAMES = ("resource_id", "tenant_id", "ctx")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def bind(source: Source, resource_id: object, tenant_id: object, ctx: object) -> Bound:
    """The call `source(resource_id, tenant_id, ctx)`, reduced to what it takes.

    Fewer positional parameters get the first of the three; `**kwargs`, and keyword-only parameters of these names,
    get the rest by name. Parameters with a default beyond the three keep it; `ConfigError` where one has none.
    """
    count, names = _shape(source)
    values = (resource_id, tenant_id, ctx)
    if isinstance(source, functools.partial):
        names -= source.keywords.keys()  # what it has settled stays so
    if not names:
        positional = values[:count]
        return lambda: source(*positional)
    keywords = {name: value for name, value in zip(_NAMES, values, strict=True) if name in names}
    return lambda: source(*values[:count], **keywords)


def _shape(source: Source) -> tuple[int, frozenset[str]]:
    """How many of the three a source takes by position, and which by name.

    A plain function is remembered by its code: a lambda written at the call is a new object each time, whose signature
    would be worked out on every miss, and whose closure a memo of functions would keep alive.
    """
    if type(source) is FunctionType and not hasattr(source, "__wrapped__"):
        code = source.__code__
        keyword_only = code.co_kwonlyargcount - len(source.__kwdefaults__ or ())
        if keyword_only or code.co_argcount - len(source.__defaults__ or ()) > len(_NAMES):
            _check_required(source, inspect.signature(source).parameters.values())
        return _shape_of_code(code)
    try:
        parameters = inspect.signature(source).parameters.values()
    except ValueError:  # a builtin that does not say
        return 1, frozenset()
    _check_required(source, parameters)
    kinds = [p.kind for p in parameters]
    count = 3 if inspect.Parameter.VAR_POSITIONAL in kinds else sum(kind in _POSITIONAL for kind in kinds)
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return _taken(count, named, inspect.Parameter.VAR_KEYWORD in kinds)


def _check_required(source: Source, parameters: Iterable[inspect.Parameter]) -> None:
    """Refuse a source that needs more than it can be given: better than Python's word on a call nobody wrote."""
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    positional = [p.name for p in needed if p.kind is not p.KEYWORD_ONLY]
    beyond = positional[len(_NAMES) :] + [p.name for p in needed if p.kind is p.KEYWORD_ONLY and p.name not in _NAMES]
    if beyond:
        name = getattr(source, "__qualname__", type(source).__qualname__)
        raise ConfigError(
            f"the loader {name} needs {', '.join(beyond)} too: a loader is called as f(resource_id, tenant_id, ctx), "
            "with as many of these as it takes. Give it the rest by functools.partial or a lambda"
        )


@functools.lru_cache(maxsize=1024)
def _shape_of_code(code: CodeType) -> tuple[int, frozenset[str]]:
    count = 3 if code.co_flags & inspect.CO_VARARGS else code.co_argcount
    named = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return _taken(count, named, bool(code.co_flags & inspect.CO_VARKEYWORDS))


def _taken(count: int, named: Iterable[str], any_name: bool) -> tuple[int, frozenset[str]]:
    count = min(3, count)
    rest = _NAMES[count:]
    return count, frozenset(rest) if any_name else frozenset(rest).intersection(named)


async def _once(call: Bound, timeout_s: float) -> Any:
    try:
        async with asyncio.timeout(timeout_s) as limit:
            result = call()
            return await result if inspect.isawaitable(result) else result
    except TimeoutError:
        if limit.expired():
            raise LoadTimeout(f"the load took longer than {timeout_s:g} s") from None
        raise


async def call(
    bound: Bound, *, timeout_s: float, retries: int, retry_on: tuple[type[Exception], ...], backoff_s: float
) -> Any:
    """Run a source once, and up to `retries` times more after an error of `retry_on`, with jittered back-off.

    `timeout_s` bounds the whole, in seconds: `LoadTimeout`. A sync source runs on the event loop.
    """

    async def attempts() -> Any:
        try:
            result = bound()
            return await result if inspect.isawaitable(result) else result
        except retry_on:
            if not retries:
                raise
        import stamina

        await asyncio.sleep(backoff_s)
        async for attempt in stamina.retry_context(
            on=retry_on, attempts=retries, timeout=None, wait_initial=backoff_s, wait_jitter=backoff_s
        ):
            with attempt:
                result = bound()
                return await result if inspect.isawaitable(result) else result
        raise AssertionError("unreachable: the last attempt returns or raises")

    return await _once(attempts, timeout_s)
