"""Checks a source while a worker works on it. Broken assumptions are reported and repaired where that is possible, and
what changes may have touched that went unnoticed is invalidated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from cachebus.base.clock import monotonic
from cachebus.base.log import logger
from cachebus.consumers.monitoring.health import Health
from cachebus.consumers.monitoring.meters import Meters
from cachebus.consumers.worker.apply import Applier
from cachebus.consumers.worker.assumptions import Assumptions
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.retry import TELL_EVERY_S
from cachebus.consumers.worker.source import Finding, Session, Source
from cachebus.keys.plan import Plan

LOOK_EVERY_S: Final = 2.0


class Watcher:
    """Watches the source of one worker, over all its sessions."""

    def __init__(self, name: str, source: Source, applier: Applier, health: Health, meters: Meters) -> None:
        self._name = name
        self._applier = applier
        self._meters = meters
        self._remedy = source.if_unnamed
        self._told_from_s = float("-inf")
        self._assumptions = Assumptions(name, source.assumptions, health)
        self._owed: dict[Any, Plan] = {}
        """Scopes in which changes may have gone unnoticed, and that are yet to be invalidated, by command."""
        self._owed_for: dict[tuple[str, str], Finding] = {}
        self._one = asyncio.Lock()
        """One check at a time: the loop may ask for one more."""

    @property
    def stopped(self) -> bool:
        """Whether an assumption is broken without which nothing may be taken."""
        return self._assumptions.stopped

    async def look(self, session: Session) -> None:
        """Check the source: report its figures, repair what can be repaired, and make up for what went unnoticed."""
        async with self._one:
            look = await session.look()
            if look.findings and await session.mend(look.findings):
                look = await session.look()
            self._meters.waits(look.backlog, look.oldest_s)
            self._meters.held.set(look.held)
            if look.latest_s is not None:
                self._meters.latest_s.set(look.latest_s)
            due = self._assumptions.update(look.findings)
            if due:
                self._owe(session, due)
            if self._owed_for:
                await self._make_up(session)

    def _owe(self, session: Session, findings: Sequence[Finding]) -> None:
        commands, unnamed = session.scopes(findings)
        if unnamed and monotonic() >= self._told_from_s:
            self._told_from_s = monotonic() + TELL_EVERY_S
            logger.error(
                "{}: changes of {} went unnoticed, and nobody can name what they touched: caches may serve it until it "
                "expires. {}",
                self._name,
                clean(", ".join(unnamed)),
                self._remedy,
            )
        found = self._applier.planned(commands)  # each by itself: one that can't be is nobody else's trouble
        if found.problems:
            wrong = "; ".join(found.problems)
            logger.error("{}: some of what changes may have touched can't be let go of: {}", self._name, wrong)
        self._owed |= zip(found.commands, found.plans, strict=True)
        self._owed_for |= {(finding.assumption, finding.subject): finding for finding in findings}

    async def _make_up(self, session: Session) -> None:
        """Invalidate the scopes that are due, as far as L2 answers. The rest is left for the next check."""
        commands = list(self._owed)
        carried = await self._applier.carry(list(self._owed.values()), LOOK_EVERY_S)
        rest = carried.away | carried.late
        self._owed = {commands[place]: self._owed[commands[place]] for place in sorted(rest)}
        if len(commands) > len(rest):
            done = len(commands) - len(rest)
            logger.warning("{}: {} scopes were let go of: their changes may have gone unnoticed", self._name, done)
        if not rest:
            findings, self._owed_for = list(self._owed_for.values()), {}
            await session.made_up(findings)
            self._assumptions.made_up(findings)
