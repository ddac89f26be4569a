"""A call of a sync function by some thread, for a coroutine that waits for it.

Nobody can end a thread that runs. So an errand is claimed once: by the thread that begins to run it, or by whoever
gives it up before that. What is given up later goes on, and what it gives is given to nobody.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, NamedTuple

from cachebus.base.log import logger
from cachebus.base.parameters import name_of


class Ended(NamedTuple):
    """What a call has given, or raised."""

    value: Any = None
    error: BaseException | None = None
    nobody: bool = False
    """Whether the thread that was to run it has gone."""


class Errand:
    """One call, in the context of who asks for it. Made on the event loop that waits."""

    __slots__ = ("_answer", "_claim", "_context", "_function", "_loop")

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self._context = function, copy_context()
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Ended] = self._loop.create_future()
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Take it, to run it or to give it up; whether nobody was quicker."""
        return self._claim.acquire(blocking=False)

    def run(self) -> None:
        """Run it, on this thread, unless it was given up. What interrupts the thread passes, and answers nobody."""
        if not self.claim():
            return
        try:
            outcome = Ended(self._context.run(self._function))
        except Exception as error:  # noqa: BLE001 (the user's, and raised where it is waited for)
            outcome = Ended(error=error)
        self.answer(outcome)

    def run_whole(self) -> None:
        """The same on a thread that ends with it: what would end the thread, or the program, is an error here."""
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001 (else it would end the event loop that waits)
            self.answer(Ended(error=RuntimeError(f"{name_of(self._function)} raised {type(error).__name__}")))

    def answer(self, outcome: Ended) -> None:
        """Tell who waits, from any thread. Where the loop has ended nobody does."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell, outcome)

    def _tell(self, outcome: Ended) -> None:
        if not self._answer.done():
            self._answer.set_result(outcome)

    async def answered(self) -> Ended:
        """Wait for its outcome."""
        return await self._answer

    def give_up(self) -> bool:
        """Nobody waits any more. Whether it never ran, nor will; a function that runs goes on, which is logged."""
        never_ran = self.claim()
        if not never_ran and (self._answer.cancelled() or not self._answer.done()):
            logger.warning("{} goes on in its thread though nobody waits for it", name_of(self._function))
        return never_ran


def in_own_thread(errand: Errand) -> None:
    """Have an errand run by a thread of its own, which does not keep the process alive.

    No pool: what a thread keeps, as a connection of a database, ends with it, instead of growing old unseen.
    """
    threading.Thread(target=errand.run_whole, name="cachebus-loader", daemon=True).start()
