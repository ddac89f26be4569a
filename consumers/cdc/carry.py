"""What both sources share: changes into plans, plans into L2, and what can't be used into the dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import NamedTuple

from loguru import logger

from cachebus.clock import wall_s
from cachebus.plan import Plan
from consumers.apply import REFUSED, Applier
from consumers.cdc.change import RowChange
from consumers.cdc.router import Router
from consumers.dead import DeadLetter
from consumers.meters import Meters
from producers.command import Command


class Ask(NamedTuple):
    """What a change asks for, or a part of it."""

    command: Command
    plan: Plan
    committed_s: float | None
    """When the change was committed; None for all parts but the first, so that it is counted once."""


class Batch:
    """Changes on their way: what they address, and what of them is dead."""

    def __init__(self) -> None:
        self.asks: list[Ask] = []
        self.dead: list[DeadLetter] = []
        self.ignored = 0

    def __len__(self) -> int:
        return len(self.asks) + len(self.dead)


class Carrier:
    """Takes changes into batches, and accounts for what became of them."""

    def __init__(self, router: Router, applier: Applier, meters: Meters) -> None:
        self._router = router
        self._applier = applier
        self._meters = meters

    def take(self, change: RowChange, batch: Batch, *, source: str, payload: bytes | None = None) -> None:
        """Add a change to the batch. `payload`: how it came, if not as a row."""
        try:
            commands = self._router.commands(change)
            plans = [self._applier.plan_of(command) for command in commands]
        except REFUSED as error:
            self.refuse(batch, payload or change.payload(), str(error), source)
            return
        if not plans:
            batch.ignored += 1
            return
        committed = chain([change.committed_at_s or wall_s()], repeat(None))
        batch.asks += map(Ask, commands, plans, committed)

    def refuse(self, batch: Batch, payload: bytes, reason: str, source: str) -> None:
        """Add what can't be used to the batch's dead letters."""
        batch.dead.append(DeadLetter(payload, reason, source, 1, wall_s()))

    def applied(self, asks: Sequence[Ask]) -> None:
        """L2 has done these."""
        now_s = wall_s()
        committed_s = [ask.committed_s for ask in asks if ask.committed_s is not None]
        for at_s in committed_s:
            self._meters.lag_s.observe(max(0.0, now_s - at_s))
        self._meters.done("applied", len(committed_s))

    def buried(self, letters: Sequence[DeadLetter]) -> None:
        """These are in the dead letters' place."""
        for letter in letters[:1]:
            logger.warning(
                "cdc: {} of {} set aside, the first: {} ({})", len(letters), "changes", letter.reason, letter.source
            )
        self._meters.done("dead", len(letters))
