"""What one call may wait for L2, however many steps it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from cachebus.base.clock import Clock
from cachebus.errors import L2Unavailable

T = TypeVar("T")

AT_ONCE: Final = 0.1
TOTAL: Final = 1.13
"""Parts of the time-out: what has waited for less than the one leaves the next step all of it, which its connection
ends by 1.125; beyond that, all steps together may last for the other. So none waits for more than 1.25 time-outs."""

NESTED: Final = 0.01
"""In the place of `AT_ONCE` for what may itself be a step of a call, as running a script is. At most two such lie in
one another within one call, and 0.1 + 0.01 + 1.13 is less than 1.25."""


class Late(L2Unavailable):
    """The time is over, and whoever was asked may be there all the same."""


class Budget:
    """The steps of one call together wait for L2 as long as for one silent server: at most 1.25 times `timeout_s`.

    A step alone is bounded by its connection, which knows a server that is silent from a link that is slow. So the
    first one is left to it, and so is one that follows at once; only what comes after a wait has a limit of its own.
    A step that is several has a budget of its own, with `NESTED` as `at_once`.
    """

    __slots__ = ("_at_once", "_clock", "_timeout_s", "spent_s")

    def __init__(self, clock: Clock, timeout_s: float, spent_s: float = 0.0, at_once: float = AT_ONCE) -> None:
        self._clock = clock
        self._at_once = at_once
        self._timeout_s = timeout_s
        self.spent_s = spent_s
        """What has been waited for so far."""

    def renew(self) -> None:
        """From now on it is another wait, of which nothing is spent."""
        self.spent_s = 0.0

    async def spent_on(self, step: Awaitable[T]) -> T:
        """What the step gives; `Late` when the time is over before."""
        began_s = self._clock()
        try:
            if self.spent_s < self._at_once * self._timeout_s:
                return await step
            return await self._within(TOTAL, step)
        finally:
            self.spent_s += self._clock() - began_s

    async def bounds(self, step: Awaitable[T]) -> T:
        """The same for a step that nothing else bounds, as connecting."""
        began_s = self._clock()
        try:
            return await self._within(1.0, step)
        finally:
            self.spent_s += self._clock() - began_s

    async def _within(self, part: float, step: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(max(0.0, part * self._timeout_s - self.spent_s)):
                return await step
        except TimeoutError as error:
            raise Late(f"no answer in {self._timeout_s:g} s, all steps together") from error
