"""Tasks that several callers wait for, none of whom owns them."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from cachebus.base.ignored import ignore_error
from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.resp.replies import again

T = TypeVar("T")


async def shared(task: asyncio.Task[T]) -> T:
    """What the task gives or raises; `L2Unavailable` where it was ended. A caller that is cancelled leaves it alone."""
    await asyncio.wait([task])
    if task.cancelled():
        raise L2Unavailable("the connections were closed")
    error = task.exception()
    if isinstance(error, CacheBusError):
        raise again(error)
    return task.result()


async def ended(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel them, and wait until they have ended. What they raise is nobody's, also where the caller is cancelled."""
    there = [task for task in tasks if task is not None and not task.done()]
    for task in there:
        task.add_done_callback(ignore_error)
        task.cancel()
    if there:
        await asyncio.wait(there)
    for past in tasks:
        if past is not None and past.done():
            ignore_error(past)
