"""Sets aside what can't be applied, as dead letters. What can't be set aside either stays at its source, is tried again
at a slow pace, and holds up nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final

from cachebus.base.clock import Clock, monotonic, wall_s
from cachebus.base.log import logger
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.retry import TELL_EVERY_S
from cachebus.consumers.worker.source import NotSetAside, Session, Source
from cachebus.consumers.worker.work_time import WorkTime

PART: Final = "dead"
NAMED: Final = 5
"""How many dead letters of a batch are named in the log."""
REST_S: Final = 1.0
REST_MAX_S: Final = 30.0
"""How long nothing is written after no letter was taken: at first, and at most."""
BRIEF_S: Final = 0.5
"""How long it waits, after it has waited in vain: at first. Each time in vain it waits twice as long, up to
`Source.set_aside_s`: all else of the batch waits with it, and may be for those who answer."""
RECOVERED_AFTER: Final = 2.5
"""In units of `Source.again_s`. A letter that is not refused again while the worker takes items for so long is gone, or
another worker's."""
KNOWN: Final = 10_000
"""How many refused letters are remembered."""


class DeadLetterWriter:
    """Writes the dead letters of one worker, over all sessions of its source."""

    def __init__(self, name: str, source: Source, health: WorkerHealth, clock: Clock = monotonic) -> None:
        self._name = name
        self._source = source
        self._health = health
        self._kept: list[DeadLetter] = []
        self._refused: list[NotSetAside] = []
        """These two are of the batch in hand. They count once the batch is acknowledged."""
        self._why = ""
        self._until_s = 0.0
        self._rest_s, self._rest_until_s = 0.0, float("-inf")
        self._brief_s = 0.0
        """How long the next letters are waited for, where the last ones were waited for in vain; else 0."""
        self._is_late = False
        """Whether the letters in hand were waited for in vain."""
        self._told_s = float("-inf")
        self._resting: dict[str, float] = {}
        """When each item's letter was refused last, by `work_time`, and by `DeadLetter.source`."""
        self.work_time = WorkTime(clock)
        health.up(PART)

    def begin_batch(self) -> None:
        """Begin a batch. If the last one was not acknowledged, its letters do not count."""
        self._kept, self._refused = [], []

    async def write(self, session: Session, given: Sequence[NotSetAside]) -> list[NotSetAside]:
        """Set these aside; returns those that could not be. Raises nothing, and takes `Source.set_aside_s` at most."""
        refused: list[NotSetAside] = []
        if given and monotonic() < self._rest_until_s:
            refused = list(given)
        elif given:
            most_s = self._source.set_aside_s
            self._until_s, self._is_late = monotonic() + (self._brief_s or most_s), False
            await self._write_or_split(session, given, refused)
            self._brief_s = min(most_s, 2 * self._brief_s or BRIEF_S) if self._is_late else 0.0
            nothing = len(refused) == len(given)
            self._rest_s = min(REST_MAX_S, max(REST_S, 2 * self._rest_s)) if nothing else 0.0
            self._rest_until_s = monotonic() + self._rest_s
        self._refused += refused
        return refused

    async def _write_or_split(self, session: Session, given: Sequence[NotSetAside], refused: list[NotSetAside]) -> None:
        """Write all letters together; if that fails, each half by itself, in random order, as time may be too short for
        all. A letter that can never be kept as it is ("poison") is kept without its payload."""
        error = await self._write_all(session, [one.letter for one in given])
        if error is None:
            self._kept += (one.letter for one in given)
        elif isinstance(error, TimeoutError) or monotonic() > self._until_s:
            refused += given
        elif len(given) > 1:
            mixed = random.sample(given, len(given))
            for half in mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]:
                await self._write_or_split(session, half, refused)
        elif not isinstance(error, self._source.poison):
            refused += given
        else:
            letter = given[0].letter
            reason = clean(f"{letter.reason} (kept without its value: {self._source.describe(error)})")
            bare = DeadLetter(b"", reason, clean(letter.source), 1, wall_s())
            if await self._write_all(session, [bare]) is None:
                self._kept.append(bare)
            else:
                refused += given

    async def _write_all(self, session: Session, letters: Sequence[DeadLetter]) -> Exception | None:
        try:
            async with asyncio.timeout(max(0.0, self._until_s - monotonic())):
                await session.set_aside(letters)
        except TimeoutError as error:
            self._why, self._is_late = f"it takes longer than {self._brief_s or self._source.set_aside_s:g} s", True
            return error
        except Exception as error:  # noqa: BLE001 -- if the connection is gone, acknowledging the batch raises
            self._why = self._source.describe(error)
            return error
        return None

    def end_batch(self) -> int:
        """The batch is acknowledged: log what was set aside, and, once a minute, what could not be. Returns how many
        were set aside."""
        for letter in self._kept[:NAMED]:
            tried = f" (attempt {letter.attempts})" if letter.attempts > 1 else ""
            logger.warning("{}: {} is set aside{}: {}", self._name, clean(letter.source), tried, letter.reason)
        if len(self._kept) > NAMED:
            logger.warning("{}: so are {} more", self._name, len(self._kept) - NAMED)
        for letter in self._kept:
            self._resting.pop(letter.source, None)
        if self._refused:
            self._report()
        elif self._kept:
            self.check_recovery()
        return len(self._kept)

    def _report(self) -> None:
        now_s, letter, count = monotonic(), self._refused[0].letter, len(self._refused)
        worked_s = self.work_time()
        for one in self._refused[:KNOWN]:
            if len(self._resting) < KNOWN or one.letter.source in self._resting:
                self._resting[one.letter.source] = worked_s
        more = f" and {count - 1} more" if count > 1 else ""
        which = clean(letter.source) + more
        why = f"{which} can be neither applied ({letter.reason}) nor set aside, and is tried again: {self._why}"
        self._health.down(PART, why)
        if now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            logger.error("{}: {}", self._name, why)

    def check_recovery(self) -> None:
        """Forget refusals that were not repeated in time. To be called now and then."""
        if self._health.is_up(PART):
            return
        since_s = self.work_time() - RECOVERED_AFTER * self._source.again_s
        self._resting = {source: at_s for source, at_s in self._resting.items() if at_s > since_s}
        if not self._resting:
            self._health.up(PART)
            self._told_s = float("-inf")
            logger.warning("{}: what can't be applied can be set aside again", self._name)
