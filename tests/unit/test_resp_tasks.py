"""Tasks that are ended leave nobody a word."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

from cachebus.resp import ended


async def test_what_an_ended_task_raises_is_nobodys_also_where_the_caller_is_cancelled() -> None:
    """As one whose connection is refused while it is ended."""
    told = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    going_on = asyncio.Event()

    async def refused() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await going_on.wait()
            raise ConnectionError("refused")

    task = asyncio.create_task(refused())
    await asyncio.sleep(0)
    ending = asyncio.create_task(ended(task))
    await asyncio.sleep(0)
    ending.cancel()
    with suppress(asyncio.CancelledError):
        await ending
    going_on.set()
    await asyncio.wait([task])
    del task
    gc.collect()
    assert told == []
