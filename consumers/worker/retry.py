"""Retries with back-off, for parts that may be down for long: logged now and then, and shown in the worker's health."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from cachebus.base.clock import Clock, monotonic
from cachebus.base.log import logger
from cachebus.consumers.monitoring.health import WorkerHealth

FIRST_S: Final = 0.05
LONGEST_S: Final = 5.0
TELL_EVERY_S: Final = 60.0
TELL_ANOTHER_S: Final = 5.0
"""How soon another reason than the last one is logged: a first problem, once repaired, may reveal a second."""


class Retry:
    """The retries of one part, such as "l2" or "database", whose state goes into the worker's health.

    Call `await retry.wait(error)` after each failure, and `retry.succeeded()` after each success.
    """

    def __init__(
        self, part: str, health: WorkerHealth, *, longest_s: float = LONGEST_S, clock: Clock = monotonic
    ) -> None:
        self.part = part
        self._health = health
        self._longest_s = longest_s
        self._clock = clock
        self._tries = 0
        self._since_s = 0.0
        self._told_s = 0.0
        self._told = ""

    async def wait(self, error: BaseException | str) -> None:
        """Note a failure, and return when the next try is due."""
        self.failed(error)
        await asyncio.sleep(self.pause_s())

    def pause_s(self) -> float:
        """The pause to make now: it doubles from 0.05 s up to `longest_s`, with jitter."""
        return min(self._longest_s, FIRST_S * 2.0 ** min(self._tries - 1, 20)) * random.uniform(0.5, 1.0)

    def failed(self, error: BaseException | str) -> None:
        """Note a failure, without waiting. It is logged at once, then once a minute; another reason sooner."""
        now_s = self._clock()
        said = str(error) or type(error).__name__
        self._health.down(self.part, said)
        self._tries += 1
        if self._tries == 1:
            self._since_s, self._told_s, self._told = now_s, now_s, said
            logger.warning("{} is out of reach: {}", self.part, said)
        elif now_s - self._told_s >= (TELL_EVERY_S if said == self._told else TELL_ANOTHER_S):
            self._told_s, self._told = now_s, said
            logger.warning(
                "{} is out of reach for {:.0f} s, tried {} times: {}",
                self.part,
                now_s - self._since_s,
                self._tries,
                said,
            )

    def succeeded(self) -> None:
        """Note a success."""
        self._health.up(self.part)
        if self._tries:
            logger.warning("{} is back after {:.1f} s", self.part, self._clock() - self._since_s)
            self._tries = 0
