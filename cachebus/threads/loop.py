"""The event loop of this process on which everything lives that synchronous code uses: one, in a thread of its own.

1. *Made* by the first call that needs it, in whichever process that is. Threads do not survive a fork: a child that
   goes on to call makes a loop of its own, and leaves what it has inherited alone.
2. *Ended* at the exit of the process, behind all threads that the interpreter waits for: what is open is closed first.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, Protocol

from cachebus.base import home
from cachebus.base.log import logger
from cachebus.errors import CacheBusError, ConfigError

NAME: Final = "cachebus-loop"
FORK_S: Final = 2.0
"""How long a fork waits for the loop, and the loop for the fork."""
ENDING_S: Final = 5.0
"""How long the exit of the process waits for the loop to end; a loop that somebody blocks is left behind."""


class OnLoop(Protocol):
    """What lives on the loop."""

    def close(self) -> None:
        """Bring it to rest."""

    def _forked(self) -> None:
        """This process is a child of the one in which it lives."""


class LoopThread:
    """An event loop, and the thread that runs it. It does not keep the process alive."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.open: set[OnLoop] = set()
        """What is open, or being opened. Changed on the loop alone."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._forks = home.forks
        self._ended: asyncio.Future[None] = self.loop.create_future()
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the main thread has ended: the interpreter starts none any more
            self.loop.close()
            raise ended() from None

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            while not self._ended.done():
                try:
                    runner.run(self._until_ended())
                except (SystemExit, KeyboardInterrupt) as error:  # of an async loader: asyncio lets these through
                    logger.error("{} was raised on the event loop of {}, which goes on", type(error).__name__, NAME)

    async def _until_ended(self) -> None:
        await asyncio.shield(self._ended)

    def tell(self, call: Callable[..., object], *args: Any, context: Context | None = None) -> None:
        """Have something called on the loop, from any thread; `ConfigError` where the loop has ended."""
        try:
            self.loop.call_soon_threadsafe(call, *args, context=context)
        except RuntimeError:  # what asyncio says of a loop that is closed
            raise ended() from None

    def start(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run it as a task, which is kept; to be called on the loop."""
        task = self.loop.create_task(coroutine, name="cachebus-call")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that runs it."""
        return home.forks != self._forks

    def check_elsewhere(self) -> None:
        """`ConfigError` on the loop itself, which would wait for itself. Another loop stands still meanwhile: told
        once."""
        running = running_loop()
        if running is self.loop:
            raise ConfigError(
                "this runs on the event loop that a synchronous call would wait for, as an async loader does: give a "
                "plain function as the loader, or await a Cache of its own"
            )
        if running is not None and logger.once("blocking", NAME, "async"):
            logger.warning(
                "a BlockingCache was called in async code, and its event loop stood still meanwhile: await a Cache"
            )

    def end(self) -> None:
        """End the loop, and wait until it has."""
        self.tell(self._end)
        self._thread.join(ENDING_S)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def ended() -> ConfigError:
    """What to tell who calls when it is too late."""
    return ConfigError("this process is ending: its caches were closed at its exit, and none opens any more")


_lock = threading.Lock()
_standing: list[threading.Event] = []
"""Of forks under way: what has the loop go on."""
_current: LoopThread | None = None
_exiting = False
_inherited: list[object] = []
"""A parent's. Never touched, nor collected: that would close what the two share."""


def loop_thread() -> LoopThread:
    """The process's; made where there is none yet. `ConfigError` at its exit."""
    global _current
    if _current is not None:
        return _current
    with _lock:
        if _exiting:
            raise ended()
        if _current is None:
            _current = LoopThread()
            _close_at_exit()
        return _current


def _close_at_exit() -> None:
    atexit.unregister(close_all)
    atexit.register(close_all)
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:  # its children may end without `atexit`
        from multiprocessing.util import Finalize

        Finalize(None, close_all, exitpriority=0)


def is_running() -> bool:
    """Whether this process has one already."""
    return _current is not None


def lives_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether an event loop is the one of this process's `LoopThread`."""
    return _current is not None and _current.loop is loop


def close_all() -> None:
    """Close whatever is open, and end the loop: at the exit of the process, or where a process ends otherwise. Nothing
    can be opened after that."""
    global _exiting
    with _lock:
        _exiting, current = True, _current
    if current is None or current.loop.is_closed():
        return
    for lodger in list(current.open):
        try:
            lodger.close()
        except CacheBusError as error:
            logger.warning("a cache did not close cleanly at the exit of the process: {}", error)
    current.end()


def _before_fork() -> None:
    """Have the loop stand between two of its steps meanwhile: within one it may hold a lock of Python's own, as by an
    import, which the child would find locked for ever. Not for long, nor on the loop, which would wait for itself."""
    current = _current
    if current is None or running_loop() is current.loop:
        return
    stands, goes_on = threading.Event(), threading.Event()

    def stand() -> None:
        stands.set()
        goes_on.wait(FORK_S)

    with suppress(RuntimeError):  # it has ended
        current.loop.call_soon_threadsafe(stand)
        _standing.append(goes_on)
        stands.wait(FORK_S)


def _behind_fork() -> None:
    while _standing:
        _standing.pop().set()


def _forked() -> None:
    """In a child: nothing is there yet. What waits for a lock of the parent's would wait for ever."""
    global _current, _lock, _exiting
    left, _current, _lock, _exiting = _current, None, threading.Lock(), False
    _standing.clear()
    if left is not None:
        _inherited.append(left)
        for lodger in list(left.open):
            lodger._forked()


home.in_each_child(_forked)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_behind_fork)
