"""Checks a source while a worker works on it. Broken assumptions are reported and repaired where that is possible, and
what changes may have touched that went unnoticed is invalidated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from cachebus.base.clock import monotonic
from cachebus.base.log import logger
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.monitoring.meters import Meters
from cachebus.consumers.worker.apply import Applier
from cachebus.consumers.worker.assumptions import Assumptions
from cachebus.consumers.worker.clean import clean, describe
from cachebus.consumers.worker.retry import TELL_EVERY_S
from cachebus.consumers.worker.source import Finding, FindingKey, NotStored, Session, Source
from cachebus.keys.plan import Plan

LOOK_EVERY_S: Final = 2.0
LATE: Final = "L2 has not answered in time"
LASTS: Final = "caches may serve it until it expires. Once it is mended, invalidate by hand (cachebus invalidate)"
"""Everything is not let go of over and over."""


class Watcher:
    """Watches the source of one worker, over all its sessions."""

    def __init__(self, name: str, source: Source, applier: Applier, health: WorkerHealth, meters: Meters) -> None:
        self._name = name
        self._applier = applier
        self._meters = meters
        self._hold_s = max(source.hold_s or 0.0, applier.patience_s)
        """How long L2 may take to let go of what is owed, while it answers: no less than for a batch."""
        self._told_from_s = float("-inf")
        self._assumptions = Assumptions(name, source.assumptions, health)
        self._owed: dict[Any, Plan] = {}
        """Scopes in which changes may have gone unnoticed, and that are yet to be invalidated, by command."""
        self._owed_for: dict[FindingKey, Finding] = {}
        """By what. They stay until the source has stored that they are made up for: it does not tell them anew."""
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
                self._owe(session, due, [finding for finding in look.findings if not finding.over])
            if self._owed_for:
                await self._make_up(session)

    def _owe(self, session: Session, findings: Sequence[Finding], lasting: Sequence[Finding]) -> None:
        commands = session.scopes(findings)
        if commands is None:
            keys = {finding.key for finding in lasting}
            over = any(finding.key not in keys for finding in findings)
            commands = self._applier.everything() if over else []
            if over or monotonic() >= self._told_from_s:
                self._told_from_s = monotonic() + TELL_EVERY_S
                logger.error(
                    "{}: changes of {} went unnoticed, and nobody can name what they touched: {}",
                    self._name,
                    clean(", ".join(finding.subject for finding in findings)),
                    "all that the namespace has is let go of" if over else LASTS,
                )
        found = self._applier.planned(commands)  # each by itself: one that can't be is nobody else's trouble
        if found.problems:
            wrong = "; ".join(found.problems)
            logger.error("{}: some of what changes may have touched can't be let go of: {}", self._name, wrong)
        self._owed |= zip(found.commands, found.plans, strict=True)
        for finding in findings:
            self._owed_for.pop(finding.key, None)
            self._owed_for[finding.key] = finding

    async def _make_up(self, session: Session) -> None:
        """Invalidate the scopes that are due, as far as L2 answers and takes them, and have the source store that. What
        is left of it is left for the next check."""
        commands, findings = list(self._owed), list(self._owed_for.values())
        if not self._applier.away.issuperset(plan.shard for plan in self._owed.values()):
            self._assumptions.owed(findings)
        within_s = max(LOOK_EVERY_S, self._hold_s) if self._applier.answers else LOOK_EVERY_S
        carried = await self._applier.carry(list(self._owed.values()), within_s)
        rest = carried.away | carried.late | carried.failed.keys()
        self._owed = {commands[place]: self._owed[commands[place]] for place in sorted(rest)}
        if len(commands) > len(rest):
            done = len(commands) - len(rest)
            logger.warning("{}: {} scopes were let go of: their changes may have gone unnoticed", self._name, done)
        if carried.failed or carried.late:
            why = describe(next(iter(carried.failed.values()))) if carried.failed else LATE
            self._assumptions.failed(findings, why)
        else:
            self._assumptions.let_go(findings)
        if not rest:
            try:
                await session.made_up(findings)
            except NotStored:  # it is let go of: not once more before something else is missed
                return
            self._owed_for.clear()
            self._assumptions.made_up(findings)
