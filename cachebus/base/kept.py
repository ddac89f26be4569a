"""Tasks that live as long as what they work for: whatever ends one is logged, and it begins anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final

from cachebus.base.log import logger

AGAIN_S: Final = 0.5
"""The pause before work that was ended begins anew."""

Work = Callable[[], Coroutine[object, object, object]]


def kept(work: Work, name: str) -> asyncio.Task[None]:
    """A task that does this work until it returns, or the task is cancelled."""
    return asyncio.create_task(keep(work, name), name=name)


async def keep(work: Work, name: str) -> None:
    """Do this work until it returns. Whatever it raises is logged, and it begins anew; so it does where something that
    it waited for was cancelled, and not the task that runs this."""
    while True:
        try:
            await work()
        except asyncio.CancelledError:
            if _is_to_end():
                raise
            logger.error("{}: what it waited for was cancelled; it begins anew", name)
        except Exception as error:
            if _is_to_end():  # as where closing something has failed then
                logger.exception("{} was ended, and raised instead:", name)
                raise asyncio.CancelledError from error
            logger.exception("{} has ended; it begins anew", name)
        else:
            return
        await asyncio.sleep(AGAIN_S)


def _is_to_end() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
