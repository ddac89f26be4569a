"""Calling the caller's own functions: sync or async, within limits, again after errors; and what they may give."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
from collections.abc import Callable
from types import CoroutineType
from typing import Any, Final

from loguru import logger

from cachebus.errors import ConfigError, LoadTimeout
from cachebus.parameters import Source, name_of, not_async, plan_of

Bound = Callable[[], Any]

PAUSE_MAX_S: Final = 5.0
"""Pauses between attempts grow up to this, or to the policy's first one where that is longer."""


def bind(source: Source, resource_id: object, tenant_id: object, ctx: object) -> Bound:
    """The call of `source` with what it takes of the three.

    1. Parameters named `resource_id`, `tenant_id` and `ctx` get these, wherever they stand.
    2. Other parameters without a default get what is left of the three, in this order; `*args` gets the rest of it,
       unless a parameter before it keeps its default; `**kwargs` gets what is still left, by name.
    3. Other parameters with a default keep it. A builtin that does not say what it takes gets the resource id alone.

    `ConfigError` for a parameter that nothing is left for, for a generator function, and for what is no function.
    """
    plan = plan_of(source)
    values = (resource_id, tenant_id, ctx)
    positional = [values[i] for i in plan.positional]
    return functools.partial(source, *positional, **{name: values[i] for name, i in plan.named})


async def call(
    bound: Bound, *, timeout_s: float, retries: int, retry_on: tuple[type[Exception], ...], backoff_s: float
) -> Any:
    """Run a source once, and up to `retries` times more after an error of `retry_on`.

    The pause after the first attempt is `backoff_s` seconds and up to as much again at random; each later one doubles
    the fixed part. `timeout_s` bounds the whole, in seconds: `LoadTimeout`. `ConfigError` is final, and raised for a
    value that callers can't share. A sync source runs on the event loop.
    """
    try:
        async with asyncio.timeout(timeout_s) as limit:
            value = await _attempts(bound, retries, retry_on, backoff_s)
    except Exception:
        if limit.expired():  # whatever the source has made of its cancellation
            raise LoadTimeout(f"the load took longer than {timeout_s:g} s") from None
        raise
    return shareable(value, bound)


async def _attempts(bound: Bound, retries: int, retry_on: tuple[type[Exception], ...], backoff_s: float) -> Any:
    # By hand, since a retry library brings log lines, metrics, a switch and a test mode that are the whole process's.
    pause_s = backoff_s
    for left in range(retries, -1, -1):
        try:
            result = bound()
            return await result if inspect.isawaitable(result) else result
        except retry_on as error:
            if not left or _final(error) or is_cancelled():
                raise
            # Its class alone: the text of a driver's error may hold a password.
            logger.debug("{} failed with {}, {} more attempts", name_of(bound), type(error).__name__, left)
        await asyncio.sleep(pause_s + random.uniform(0, backoff_s))
        pause_s = min(2 * pause_s, max(PAUSE_MAX_S, backoff_s))
    raise AssertionError("unreachable: the last attempt returns or raises")


def is_cancelled() -> bool:
    """Whether the running task was cancelled, whatever a source has made of that: nobody waits for it any more."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _final(error: Exception) -> bool:
    """Whether it says that the program is wrong, alone or among a task group's: another attempt does not mend that."""
    among = error.subgroup(ConfigError) if isinstance(error, ExceptionGroup) else None
    return isinstance(error, ConfigError) or among is not None


async def awaited(result: object, source: Source) -> Any:
    """What an async function's call gives, if callers can share it; `ConfigError` where it is no async function."""
    if not inspect.isawaitable(result):
        raise not_async(source)
    return shareable(await result, source)


def shareable(value: Any, source: Source) -> Any:
    """The value, unless it can be read or awaited only once: callers share it, so `ConfigError`.

    `source` is the function that gave it, for the message.
    """
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
