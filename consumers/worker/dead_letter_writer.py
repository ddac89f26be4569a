"""What can't be used is set aside; what can't be set aside either stays where it is, and costs nobody anything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final

from loguru import logger

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.monitoring.health import Health
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.retry import TELL_EVERY_S
from cachebus.consumers.worker.source import Session, Source, Unburied

PART: Final = "dead"
NAMED: Final = 5
"""Dead letters that are named in the log, of a batch that has more of them."""
REST_S: Final = 1.0
REST_MAX_S: Final = 30.0
"""So long a place that takes nothing is left alone: at first, and at most."""
FORGOTTEN_AFTER: Final = 2.5
"""Of the time after which it is tried again: who was not refused again by then is somebody else's, or gone."""
KNOWN: Final = 10_000


class Burial:
    """Of one worker, over all sessions of its source."""

    def __init__(self, name: str, source: Source, health: Health) -> None:
        self._name = name
        self._source = source
        self._health = health
        self._kept: list[DeadLetter] = []
        self._refused: list[Unburied] = []
        """Of the batch in hand, as the two above: what counts is what was let go of."""
        self._why = ""
        self._until_s = 0.0
        self._rest_s, self._rest_until_s = 0.0, float("-inf")
        self._told_s = float("-inf")
        self._resting: dict[str, float] = {}
        """By source: when its letter was refused last."""
        health.up(PART)

    def begin(self) -> None:
        """A batch is in hand: of the last one nothing counts that was not let go of."""
        self._kept, self._refused = [], []

    async def bury(self, session: Session, given: Sequence[Unburied]) -> list[Unburied]:
        """Set these aside; gives those that could not be. Whatever is raised by it, and however long it would take."""
        refused: list[Unburied] = []
        if given and monotonic() < self._rest_until_s:
            refused = list(given)
        elif given:
            self._until_s = monotonic() + self._source.bury_s
            await self._tried(session, given, refused)
            nothing = len(refused) == len(given)
            self._rest_s = min(REST_MAX_S, max(REST_S, 2 * self._rest_s)) if nothing else 0.0
            self._rest_until_s = monotonic() + self._rest_s
        self._refused += refused
        return refused

    async def _tried(self, session: Session, given: Sequence[Unburied], refused: list[Unburied]) -> None:
        """As a whole, or each half by itself, in no order: time may be too short for all. One that is poison is kept
        without what is in it."""
        error = await self._error(session, [one.letter for one in given])
        if error is None:
            self._kept += (one.letter for one in given)
        elif isinstance(error, TimeoutError) or monotonic() > self._until_s:
            refused += given
        elif len(given) > 1:
            mixed = random.sample(given, len(given))
            for half in mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]:
                await self._tried(session, half, refused)
        elif not isinstance(error, self._source.poison):
            refused += given
        else:
            letter = given[0].letter
            reason = clean(f"{letter.reason} (kept without its value: {self._source.describe(error)})")
            bare = DeadLetter(b"", reason, clean(letter.source), 1, wall_s())
            if await self._error(session, [bare]) is None:
                self._kept.append(bare)
            else:
                refused += given

    async def _error(self, session: Session, letters: Sequence[DeadLetter]) -> Exception | None:
        try:
            async with asyncio.timeout(max(0.0, self._until_s - monotonic())):
                await session.bury(letters)
        except TimeoutError as error:
            self._why = f"it takes longer than {self._source.bury_s:g} s"
            return error
        except Exception as error:  # noqa: BLE001 -- is the connection gone, letting go of the batch says so
            self._why = self._source.describe(error)
            return error
        return None

    def over(self) -> int:
        """The batch was let go of: what was set aside is told, and what could not be, once a minute. Gives how many
        were set aside."""
        for letter in self._kept[:NAMED]:
            tried = f" (attempt {letter.attempts})" if letter.attempts > 1 else ""
            logger.warning("{}: {} is set aside{}: {}", self._name, clean(letter.source), tried, letter.reason)
        if len(self._kept) > NAMED:
            logger.warning("{}: so are {} more", self._name, len(self._kept) - NAMED)
        for letter in self._kept:
            self._resting.pop(letter.source, None)
        if self._refused:
            self._tell()
        elif self._kept:
            self.look()
        return len(self._kept)

    def _tell(self) -> None:
        now_s, letter, count = monotonic(), self._refused[0].letter, len(self._refused)
        for one in self._refused[:KNOWN]:
            if len(self._resting) < KNOWN or one.letter.source in self._resting:
                self._resting[one.letter.source] = now_s
        more = f" and {count - 1} more" if count > 1 else ""
        which = clean(letter.source) + more
        why = f"{which} can be neither applied ({letter.reason}) nor set aside, and is tried again: {self._why}"
        self._health.down(PART, why)
        if now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            logger.error("{}: {}", self._name, why)

    def look(self) -> None:
        """Now and then: a refusal that was not repeated is over."""
        if self._health.is_up(PART):
            return
        since_s = monotonic() - FORGOTTEN_AFTER * self._source.again_s
        self._resting = {source: at_s for source, at_s in self._resting.items() if at_s > since_s}
        if not self._resting:
            self._health.up(PART)
            self._told_s = float("-inf")
            logger.info("{}: what can't be applied can be set aside again", self._name)
