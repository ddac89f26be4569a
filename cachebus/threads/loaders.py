"""Sync loaders in threads: `blocking`, for a `Cache` and a `BlockingCache` alike."""

from __future__ import annotations

import functools
import inspect
import math
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from cachebus.base.parameters import name_of, refuse_generator
from cachebus.errors import ConfigError
from cachebus.threads.errand import Ended, Errand, in_own_thread
from cachebus.threads.loop import lives_here

P = ParamSpec("P")
T = TypeVar("T")

THREADS: Final = 40
"""Loaders that run in threads at a time, on one event loop."""

_limiter: RunVar[CapacityLimiter] = RunVar("cachebus_loaders")
RunApart = Callable[[Callable[[], Any]], Any]
"""Runs a function in a thread of its own, as a framework wants it there, and gives what it gives."""
run_apart: ContextVar[RunApart | None] = ContextVar("cachebus_run_apart", default=None)
"""For the loads of a call, on the event loop: that of the framework whose cache is called."""


def blocking(
    loader: Callable[P, T], *, limiter: CapacityLimiter | None = None
) -> Callable[P, Coroutine[object, object, T]]:
    """Have a sync loader run in a thread, so that the event loop goes on: `get_or_load(..., blocking(load))`.

    It is given what the loader takes of `resource_id`, `tenant_id` and `ctx`, and sees the context variables of who
    began the load. `limiter`: how many run at a time, as by the size of a pool of connections, shared by all that are
    given the same one; None is 40 for all the others of an event loop, apart from those of anyio.

    A load that is cancelled, or takes longer than `load_timeout_s`, leaves its thread behind, as no thread can be ended
    from outside: it goes on, what it gives is given to nobody, and it counts for the limiter until it has ended. Give
    the driver a time limit of its own.

    Returns an async function. Raises `ConfigError` for one that is async already, and for a generator.
    """
    if not callable(loader):
        raise ConfigError(f"blocking takes a function, not a {type(loader).__name__}")
    if inspect.iscoroutinefunction(loader) or inspect.iscoroutinefunction(type(loader).__call__):
        raise ConfigError(f"blocking takes sync functions, and {name_of(loader)} is async: give it as it is")
    refuse_generator(loader, "the loader")

    @functools.wraps(loader)
    async def in_thread(*args: P.args, **kwargs: P.kwargs) -> T:
        result: T = await in_a_thread(functools.partial(loader, *args, **kwargs), limiter)
        return result

    in_thread.__qualname__ = name_of(loader)
    return in_thread


async def in_a_thread(function: Callable[[], Any], limiter: CapacityLimiter | None = None) -> Any:
    """What a sync function gives, in a thread; cancelled, it is left behind if it runs already."""
    limiter = limiter or _usual()
    await limiter.acquire_on_behalf_of(function)
    release = functools.partial(_release, limiter, function)
    loop, apart = get_running_loop(), run_apart.get()

    def run() -> Any:
        # By the thread itself, however long it takes: else those that are left behind would be more and more.
        try:
            return function() if apart is None else apart(function)
        finally:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(release)

    run.__qualname__ = name_of(function)
    errand = Errand(run)
    try:
        outcome = await (_in_own(errand) if lives_here(loop) else _in_pool(errand))
    except BaseException:
        if errand.give_up():
            release()
        raise
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


async def _in_own(errand: Errand) -> Ended:
    in_own_thread(errand)
    return await errand.answered()


async def _in_pool(errand: Errand) -> Ended:
    """By anyio, whose threads end with the event loop."""
    # With no limit of its own: it would let go of its place as soon as the thread is left behind.
    await to_thread.run_sync(errand.run_whole, abandon_on_cancel=True, limiter=CapacityLimiter(math.inf))
    return await errand.answered()


def _usual() -> CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = CapacityLimiter(THREADS)
        _limiter.set(limiter)
        return limiter


def _release(limiter: CapacityLimiter, borrower: object) -> None:
    limiter.release_on_behalf_of(borrower)
