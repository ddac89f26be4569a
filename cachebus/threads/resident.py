"""What lives on the event loop of this process, and is used from any thread: opened by its first call, closed once.

Its state is changed on the loop alone, so it has no lock that a fork could leave locked. In a child of a fork it is as
new: the first call there opens another one, and what the parent has open is left alone.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from cachebus.base.ignored import ignore_error
from cachebus.base.log import logger
from cachebus.errors import ConfigError
from cachebus.settings import Settings
from cachebus.threads.crossing import Crossing, Limit
from cachebus.threads.loop import LoopThread, loop_thread

R = TypeVar("R")
CLOSING_S = 10.0
"""How much longer than `close_timeout_s` closing may take before the loop is taken for stuck."""


class Opened(Protocol):
    """What a resident keeps on the loop."""

    async def __aenter__(self) -> object:
        """Open it."""

    async def aclose(self) -> None:
        """Close it."""


O = TypeVar("O", bound=Opened)  # noqa: E741


class Resident(ABC, Generic[O]):
    """Opened on the loop by its first call in each process, or by `with`; closed by `close`, or the process's exit."""

    _WHAT = "resident"
    """What it is called in errors."""

    def __init__(self, settings: Settings | str | None) -> None:
        self.settings = Settings.of(settings)
        self._there: O | None = None
        """What is open in this process."""
        self._opening: asyncio.Task[O] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = self._entered = False
        self._usual = Limit(60.0)

    @abstractmethod
    def _make(self) -> O:
        """A new one, not open yet; called on the loop."""

    def _changed(self, there: O | None) -> None:
        """Another one is open now, or none; called on the loop, and in the child of a fork."""
        self._there = there

    def __enter__(self) -> Self:
        if self._entered:
            raise ConfigError(f"this {self._WHAT} is open already")
        self._closed, self._entered = False, True
        try:
            self._ask(_nothing)
        except BaseException:
            self._entered = False
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as trouble:
            if error is None:
                raise
            logger.warning("the {} did not close cleanly: {!r}", self._WHAT, trouble)  # what the block raised passes

    def close(self) -> None:
        """Let loads end and pending invalidations be delivered within `close_timeout_s`, and leave the fleet; for all
        threads. Closing twice is harmless. Calls after that raise `ConfigError`, until it is entered anew by `with`."""
        if self._there is None and self._opening is None:
            self._closed, self._entered = True, False
            return
        limit = Limit(self.settings.close_timeout_s + CLOSING_S)
        Crossing().run(self._close(), limit)

    def _forked(self) -> None:
        """In a child of a fork: whatever was open is the parent's, and this one is as new."""
        self._opening = self._closing = None
        self._changed(None)

    # -- for the verbs --------------------------------------------------------------------------------------------

    def _ask(
        self, verb: Callable[[O], Awaitable[R]], limit: Limit | None = None, crossing: Crossing | None = None
    ) -> R:
        """What an async verb gives. `crossing`: that of a call which brings functions to be run by this thread."""
        self._check_open()
        asked: R = (crossing or Crossing()).run(self._asked(verb), limit or self._usual)
        return asked

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError(f"this {self._WHAT} is closed: enter it anew by `with`, or make another one")

    async def _asked(self, verb: Callable[[O], Awaitable[R]]) -> R:
        there = self._there
        return await verb(await self._open() if there is None else there)

    # -- on the loop ----------------------------------------------------------------------------------------------

    async def _open(self) -> O:
        """What is open; all who come while it is being opened wait for the same attempt, and are told how it failed."""
        self._check_open()
        if self._opening is None:
            self._opening = loop_thread().start(self._begin(loop_thread()))
            self._opening.add_done_callback(ignore_error)  # who has asked is told, and may have gone
        return await asyncio.shield(self._opening)

    async def _begin(self, thread: LoopThread) -> O:
        thread.open.add(self)
        try:
            there = self._make()
            await there.__aenter__()
        except BaseException:
            thread.open.discard(self)
            raise
        finally:
            self._opening = None
        self._changed(there)
        return there

    async def _close(self) -> None:
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._closing is None:
            self._closing = loop_thread().start(self._end(loop_thread()))
        await asyncio.shield(self._closing)

    async def _end(self, thread: LoopThread) -> None:
        there = self._there
        try:
            if there is not None:
                await there.aclose()  # until then loads that are under way may use it
        finally:
            self._closed, self._entered, self._closing = True, False, None
            self._changed(None)
            thread.open.discard(self)


async def _nothing(there: Any) -> None:
    """For who only wants it open."""
