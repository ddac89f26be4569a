"""Tells subscribers what has happened: in the supervisor, one after the other, in the order in which it happened.

1. A callback that raises, or takes too long, costs nobody anything but itself: it is counted, and logged once a minute.
2. What a callback gives is awaited, if it can be, in a task of its own: one that goes on after its time is left behind.
3. While one is awaited the others wait, and what happens meanwhile waits in the queue, whose room is limited.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Final

from cachebus.base.clock import Clock
from cachebus.base.ignored import ignore_error
from cachebus.base.log import logger
from cachebus.base.parameters import name_of
from cachebus.core.telling import made
from cachebus.observe.counters import Counters
from cachebus.observe.hooks import QUEUE_MAX, Hook, Hooks

AT_ONCE: Final = 32
"""So many events are told before others have the event loop again."""
GIVE_UP_S: Final = 0.5
"""How long an awaitable may take to end in order, once it is cancelled."""
TELL_EVERY_S: Final = 60.0

_left_behind: set[asyncio.Future[Any]] = set()
"""Those that go on after that. Held here, since the event loop holds tasks weakly."""


class HookDelivery:
    """What one open cache tells its subscribers."""

    def __init__(self, hooks: Hooks, counters: Counters, clock: Clock) -> None:
        self._hooks, self._counters, self._clock = hooks, counters, clock
        self._news, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._in_a_row = 0
        self._told_s, self._told_of = -TELL_EVERY_S, 0
        """When it was last logged that some were dropped, and how many had been by then."""

    def begin(self) -> None:
        """From now on what happens is to be told."""
        self._hooks.begin(self._clock, self._counters, self._wake)

    def _wake(self) -> None:
        self._news.set()
        self._idle.clear()

    async def step(self) -> None:
        """Tell what has happened next; where there is nothing, wait for it."""
        untold = self._hooks.take()
        if untold is None:
            self._idle.set()
            self._tell_dropped()
            await self._news.wait()
            self._news.clear()
            return
        event = made(untold)
        for hook in untold.hooks:
            if not hook.is_removed:
                await self._call(hook, event)
        self._in_a_row += 1
        if self._in_a_row % AT_ONCE == 0:
            await asyncio.sleep(0)

    async def end(self, timeout_s: float, *, is_told: bool) -> None:
        """Let what waits be told within so many seconds; what is left then is dropped, counted and logged. `is_told`:
        whether the supervisor works."""
        try:
            if is_told:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            if left := self._hooks.end():
                logger.warning("hooks: {} events were not told before the cache was closed", left)

    # -- one callback ---------------------------------------------------------------------------------------------

    async def _call(self, hook: Hook, event: object) -> None:
        try:
            result = hook.callback(event)
            if inspect.isawaitable(result):
                await self._awaited(hook, asyncio.ensure_future(result))
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is None or me.cancelling():
                raise
            self._failed(hook, "it was cancelled from within")
        except Exception as error:  # noqa: BLE001 (the user's: it may be anything)
            self._failed(hook, type(error).__name__, error)

    async def _awaited(self, hook: Hook, task: asyncio.Future[Any]) -> None:
        task.add_done_callback(ignore_error)
        try:
            await asyncio.wait([task], timeout=hook.timeout_s)
        finally:
            if not task.done():
                task.cancel()
                _left_behind.add(task)
                task.add_done_callback(_left_behind.discard)
        if not task.done():
            await asyncio.wait([task], timeout=GIVE_UP_S)
            goes_on = "" if task.done() else ", goes on after it was cancelled, and is left behind"
            self._failed(hook, f"it took longer than {hook.timeout_s:g} s{goes_on}")
        elif task.cancelled():
            self._failed(hook, "it was cancelled from within")
        elif (error := task.exception()) is not None:
            self._failed(hook, type(error).__name__, error)

    def _failed(self, hook: Hook, why: str, error: BaseException | None = None) -> None:
        self._counters.hook_failures += 1
        now_s = self._clock()
        if now_s - hook.told_s >= TELL_EVERY_S:
            hook.told_s = now_s
            logger.error("the hook {} of {!r} has failed: {}", name_of(hook.callback), hook.name, why, exception=error)

    def _tell_dropped(self) -> None:
        dropped, now_s = self._counters.hook_events_dropped, self._clock()
        if dropped > self._told_of and now_s - self._told_s >= TELL_EVERY_S:
            logger.warning(
                "hooks: {} events were dropped, as {:,} waited to be told: callbacks are too slow",
                dropped - self._told_of,
                QUEUE_MAX,
            )
            self._told_s, self._told_of = now_s, dropped
