"""What one call may wait for L2, however many steps it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from cachebus.clock import Clock
from cachebus.errors import L2Unavailable

T = TypeVar("T")

AT_ONCE: Final = 0.1
"""What has been waited for less than this part of the time-out leaves the next step all of it."""


class Budget:
    """The steps of one call together wait for L2 as long as for one silent server, at most 1.25 times `timeout_s`.

    A step alone is bounded by its connection, which knows a server that is silent from a link that is slow. So the
    first one is left to it, and so is one that follows at once; only what comes after a wait has a time-out of its own.
    """

    __slots__ = ("_clock", "_from_s", "_timeout_s")

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._from_s = clock()

    async def spent_on(self, step: Awaitable[T]) -> T:
        """What the step gives; `L2Unavailable` when the time is over before."""
        spent_s = self._clock() - self._from_s
        if spent_s < AT_ONCE * self._timeout_s:
            return await step
        try:
            async with asyncio.timeout(max(0.0, 1.25 * self._timeout_s - spent_s)):
                return await step
        except TimeoutError:
            raise self._over() from None

    async def bounds(self, step: Awaitable[T]) -> T:
        """The same for a step that nothing else bounds."""
        try:
            async with asyncio.timeout(max(0.0, self._timeout_s - (self._clock() - self._from_s))):
                return await step
        except TimeoutError:
            raise self._over() from None

    def _over(self) -> L2Unavailable:
        return L2Unavailable(f"no answer in {self._timeout_s:g} s, all steps together")
