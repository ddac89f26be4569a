"""A call from a thread over to the event loop, and back: the thread waits, and meanwhile runs what is asked of it.

1. `Crossing.run` starts a coroutine on the loop, in a copy of the caller's context, and waits at its inbox.
2. A plain function as the loader runs on the thread that waits (`OnCaller`), so that what the thread has is there: its
   connection of the database, its transaction. The loop puts an errand into the inbox, and waits for the answer.
3. The coroutine has ended: its outcome is in the inbox.

A thread that waits runs an errand at once. While it does, the others of its call go to threads of their own, since
their time limits run. A call of its own loader has a crossing and an inbox of its own, so it waits in there, and not
for itself. A thread that goes, by a time limit or an interruption, says so on the loop: its coroutine is cancelled, and
what it was to run is run by another thread, if others wait for that load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from cachebus.base.clock import monotonic
from cachebus.base.parameters import SourceFunction, StandIn, name_of
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.reading.reentrance import is_refresh
from cachebus.threads.errand import Ended, Errand
from cachebus.threads.loaders import in_a_thread
from cachebus.threads.loop import LoopThread, loop_thread

GONE_S: Final = 0.05
"""How long a load waits, whose thread has gone, for its own cancellation: it comes if nobody else waits."""


class Limit(NamedTuple):
    """How long a call may wait for others, in seconds, and what is raised when it has."""

    within_s: float
    error: type[Exception] = L2Unavailable


class Crossing:
    """One call on its way."""

    __slots__ = ("_errands", "_inbox", "_is_busy", "_task", "_thread", "over")

    def __init__(self) -> None:
        """`ConfigError` on the loop itself, and at the exit of the process."""
        self._thread = loop_thread()
        self._thread.check_elsewhere()
        self._inbox: SimpleQueue[Errand | Ended] = SimpleQueue()
        self._errands: set[Errand] = set()
        self._task: asyncio.Task[None] | None = None
        self._is_busy = False
        """Whether the thread has an errand."""
        self.over = False
        """Whether nobody is at the inbox any more. Changed and read on the loop alone, so that no errand is put into it
        behind that."""

    @property
    def thread(self) -> LoopThread:
        """Where it leads."""
        return self._thread

    def run(self, coroutine: Coroutine[Any, Any, Any], limit: Limit) -> Any:
        """What the coroutine gives. Raises what it raises, and the limit's error when that is over; what this thread
        has run itself does not count for it."""
        inbox, left_s = self._inbox, None if limit.within_s == inf else limit.within_s
        try:
            self._thread.tell(self._begin, coroutine, context=copy_context())
        except BaseException:
            coroutine.close()
            raise
        try:
            while True:
                began_s = monotonic()
                told = inbox.get(timeout=left_s)
                if isinstance(told, Ended):
                    return self._told(told)
                left_s = None if left_s is None else max(0.0, left_s - (monotonic() - began_s))
                self._serve(told)
        except Empty:
            self._leave()
            raise limit.error(f"no answer within {limit.within_s:g} s; see timeout_s of BlockingCache.open") from None
        except BaseException:
            self._leave()
            raise

    def _told(self, outcome: Ended) -> Any:
        error = outcome.error
        if error is None:
            return outcome.value
        if isinstance(error, asyncio.CancelledError):
            raise L2Unavailable("the event loop ended while this call was under way") from None
        try:
            raise error
        finally:
            del error, outcome  # else the error would hold itself, by its trace

    def _serve(self, errand: Errand) -> None:
        errand.run()
        if self._thread.forked:
            raise ConfigError("this process was forked in a loader: only the parent can go on with the load")

    def _leave(self) -> None:
        """Nobody waits here any more. Where the loop has ended there is nobody to be told."""
        if not self._thread.forked and not self._thread.loop.is_closed():
            self._thread.tell(self._left)

    # -- on the loop ----------------------------------------------------------------------------------------------

    def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._task = self._thread.start(self._carry(coroutine))

    async def _carry(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            outcome = Ended(await coroutine)
        except BaseException as error:  # noqa: BLE001 (all of it is the caller's, who waits in another thread)
            outcome = Ended(error=error)
        self.over = True
        self._inbox.put(outcome)

    def _left(self) -> None:
        self.over = True
        if self._task is not None:
            self._task.cancel()
        for errand in self._errands:
            self._thread.loop.call_later(GONE_S, errand.answer, Ended(nobody=True))

    async def ask(self, function: Callable[[], Any]) -> Any:
        """What a sync function gives, on the thread that waits; on another one where none waits here any more, or it
        runs another one."""
        if not self.over and not self._is_busy:
            self._is_busy = True
            errand = Errand(self._freeing(function))
            self._errands.add(errand)
            self._inbox.put(errand)
            try:
                outcome = await errand.answered()
            except asyncio.CancelledError:
                if errand.give_up():
                    self._is_busy = False
                raise
            finally:
                self._errands.discard(errand)
            if outcome.error is not None:
                raise outcome.error
            if not outcome.nobody:
                return outcome.value
        return await in_a_thread(function)

    def _freeing(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """The same. The thread is free before anybody knows what it gives: another attempt finds it so."""

        def run() -> Any:
            try:
                return function()
            finally:
                self._is_busy = False

        run.__qualname__ = name_of(function)
        return run


class OnCaller(StandIn):
    """A plain function as a loader of a cache on the loop: run by the thread that has called."""

    def __init__(self, source: SourceFunction, crossing: Crossing, *, apart: bool = False) -> None:
        """`apart`: run it in a thread of its own instead."""
        super().__init__(source)
        self._crossing, self._apart = crossing, apart

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = partial(self.source, *args, **kwargs)
        result = await (in_a_thread(bound) if self._apart or is_refresh() else self._crossing.ask(bound))
        # Of a lambda around an async function: that one runs on the loop.
        return await result if asyncio.iscoroutine(result) else result
