"""Calling the user's own functions, sync or async.

1. `bind`: with what each takes of the resource id, the tenant and the context.
2. `call`: within a time limit, again after errors that are worth it.
3. `shareable`: what they give must be a value that several callers can have.

A source runs in a task of its own, since no limit holds for code that swallows its cancellation. Whoever waits for the
source waits for that task, and leaves it behind if need be.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
from collections.abc import Callable
from types import CoroutineType
from typing import Any, Final

from cachebus.base.ignored import ignore_error
from cachebus.base.log import logger
from cachebus.base.parameters import PREVIOUS, SourceFunction, name_of, not_async, passing_of
from cachebus.decided import Decided, Previous
from cachebus.errors import ConfigError, LoadTimeout
from cachebus.policy import Rules
from cachebus.reading.promises import look_at_promise
from cachebus.reading.request import Load, Loaded

Bound = Callable[[], Any]

PAUSE_MAX_S: Final = 5.0
"""Pauses between attempts grow up to this, or to the policy's first one where that is longer."""
GIVE_UP_S: Final = 0.5
"""How long a source that is cancelled may take to put its things in order, as by rolling back."""

_left_behind: set[asyncio.Task[Any]] = set()
"""Sources that are given up, or go on after that. Held here, since the event loop holds tasks weakly."""


def bind(source: SourceFunction, resource_id: object, tenant_id: object, ctx: object) -> Bound:
    """The call of `source` with what it takes of the three.

    1. Parameters named `resource_id`, `tenant_id` and `ctx` get these, wherever they stand.
    2. Other parameters without a default get what is left of the three, in this order; `*args` gets the rest of it,
       unless a parameter before it keeps its default; `**kwargs` gets what is still left, by name.
    3. Other parameters with a default keep it. A builtin that does not say what it takes gets the resource id alone.
    4. A parameter named `previous` is left for the load, which knows what the cache still has: see `WithPrevious`.

    `ConfigError` for a parameter that nothing is left for, for a generator function, and for what is no function.
    """
    passing = passing_of(source)
    values = (resource_id, tenant_id, ctx)
    positional = [values[i] for i in passing.positional]
    kind = WithPrevious if passing.takes_previous else functools.partial
    return kind(source, *positional, **{name: values[i] for name, i in passing.named})


class WithPrevious(functools.partial[Any]):
    """A source that is to be told what the cache still has."""

    def told(self, previous: Previous[Any] | None) -> Bound:
        """The same, told so."""
        return functools.partial(self.func, *self.args, **self.keywords, **{PREVIOUS: previous})


async def call(
    bound: Bound, *, timeout_s: float, retries: int, retry_on: tuple[type[Exception], ...], backoff_s: float
) -> Any:
    """Run a source once, and up to `retries` times more after an error of `retry_on`.

    The pause after the first attempt is `backoff_s` seconds and up to as much again at random; each later one doubles
    the fixed part. `timeout_s` bounds the whole, in seconds: the source is cancelled then, and it is `LoadTimeout`,
    whatever it makes of that. No attempt follows, there or when the caller is cancelled; a source that goes on
    `GIVE_UP_S` later is left behind, and logged. `ConfigError` is final, and raised for a value that callers can't
    share. A sync source runs on the event loop.
    """
    attempts = _Attempts(bound, retries, retry_on, backoff_s)
    task = asyncio.create_task(attempts.run(), name="cachebus-source")
    task.add_done_callback(ignore_error)
    try:
        await asyncio.wait([task], timeout=timeout_s)
    except asyncio.CancelledError:
        if not task.done() or task.cancelled():
            raise
        # The last caller left just as the source had answered, or failed: to forget that would have it asked again.
    finally:
        if not task.done():
            attempts.end()
            await _given_up(task, bound)
    if attempts.over:
        raise LoadTimeout(f"the load took longer than {timeout_s:g} s")
    if _cancelled_itself(task):
        raise LoadTimeout("the load was cancelled from within, as by a time limit of its own")
    return shareable(task.result(), bound)


def _cancelled_itself(task: asyncio.Task[Any]) -> bool:
    """Whether it was cancelled from within. Such a source has failed; only the flight's end is a cancellation."""
    return task.cancelled()


async def _given_up(task: asyncio.Task[Any], bound: Bound) -> None:
    """Cancel it, and wait no longer than it takes to end in order."""
    _left_behind.add(task)
    task.add_done_callback(_left_behind.discard)
    task.cancel()
    await asyncio.wait([task], timeout=GIVE_UP_S)
    if not task.done():
        logger.warning("{} goes on after it was cancelled, and is left behind", name_of(bound))


def load_of(bound: Bound, rules: Rules) -> Load:
    """The load of one source function, by the rules of its type."""

    async def load(previous: Previous[Any] | None) -> Loaded:
        return loaded_of(await call_by(rules, bound, previous))

    return load


def loaded_of(given: Any) -> Loaded:
    """What a source gave: its value, and what it has decided of it."""
    if not isinstance(given, Decided):
        return Loaded(given)
    return Loaded(getattr(given, "value", None), decided=given)


async def call_by(rules: Rules, bound: Bound, previous: Previous[Any] | None) -> Any:
    """`call` with the retries and the time limit of a type. `previous`: for a source that takes it."""
    look_at_promise(bound.func if isinstance(bound, functools.partial) else bound, rules)
    return await call(
        bound.told(previous) if isinstance(bound, WithPrevious) else bound,
        timeout_s=rules.load_timeout_s,
        retries=rules.retries,
        retry_on=rules.retry_on,
        backoff_s=rules.retry_backoff_s,
    )


class _Attempts:
    """The attempts of one call. Once it is `over`, none is begun."""

    # By hand, since a retry library brings log lines, metrics, a switch and a test mode that are the whole process's.

    def __init__(self, bound: Bound, retries: int, retry_on: tuple[type[Exception], ...], backoff_s: float) -> None:
        self._bound, self._retries, self._retry_on, self._backoff_s = bound, retries, retry_on, backoff_s
        self._over = False

    @property
    def over(self) -> bool:
        """Whether the limit is over, or the caller gone: a source can hide its cancellation, but not this."""
        return self._over

    def end(self) -> None:
        """Begin no attempt any more."""
        self._over = True

    async def run(self) -> Any:
        """What the first attempt gives that does not fail."""
        pause_s = self._backoff_s
        for remaining in range(self._retries, -1, -1):
            try:
                result = self._bound()
                return await result if inspect.isawaitable(result) else result
            except self._retry_on as error:
                if not remaining or _final(error) or self.over or _is_cancelled():
                    raise
                # Its class alone: the text of a driver's error may hold a password.
                logger.debug(
                    "{} failed with {}, {} more attempts", name_of(self._bound), type(error).__name__, remaining
                )
            await asyncio.sleep(pause_s + random.uniform(0, self._backoff_s))
            pause_s = min(2 * pause_s, max(PAUSE_MAX_S, self._backoff_s))
        raise AssertionError("unreachable: the last attempt returns or raises")


def leave_if_cancelled() -> None:
    """Begin nothing more for nobody: what a source has just answered was heard, but another one is not to be asked."""
    if _is_cancelled():
        raise asyncio.CancelledError


def _is_cancelled() -> bool:
    """Whether the running task was cancelled, as by the end of its event loop, whatever a source has made of that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _final(error: Exception) -> bool:
    """Whether it says that the program is wrong, alone or among a task group's: another attempt does not mend that."""
    among = error.subgroup(ConfigError) if isinstance(error, ExceptionGroup) else None
    return isinstance(error, ConfigError) or among is not None


async def awaited(result: object, source: SourceFunction) -> Any:
    """What an async function's call gives, if callers can share it; `ConfigError` where it is no async function."""
    if not inspect.isawaitable(result):
        raise not_async(source)
    return shareable(await result, source)


def shareable(value: Any, source: SourceFunction) -> Any:
    """The value, unless it can be read or awaited only once: callers share it, so `ConfigError`.

    `source` is the function that gave it, for the message.
    """
    if isinstance(value, Decided):
        inner = getattr(value, "value", None)
        if isinstance(inner, Decided):
            raise ConfigError(
                f"{name_of(source)} gave a {type(inner).__name__} in a {type(value).__name__}: one decides"
            )
        shareable(inner, source)
        return value
    kind = type(value)
    if hasattr(kind, "__next__") or hasattr(kind, "__anext__"):
        raise ConfigError(
            f"{name_of(source)} gave an iterator ({kind.__name__}): callers share what is loaded, and the first to "
            "read it would leave nothing to the others. Let it return a list"
        )
    if hasattr(kind, "__await__"):
        if isinstance(value, CoroutineType):
            value.close()  # nobody awaits it any more, which Python would warn of
        raise ConfigError(
            f"{name_of(source)} gave an awaitable ({kind.__name__}), which is no value to share: await it in there"
        )
    return value
