"""What a source assumes, such as that a trigger is there. A broken assumption is reported while it lasts. If changes
may go unnoticed by it, what they may have touched is invalidated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from cachebus.base.clock import Clock, monotonic
from cachebus.base.log import logger
from cachebus.consumers.monitoring.health import Health
from cachebus.consumers.worker.retry import TELL_EVERY_S
from cachebus.consumers.worker.source import Finding

MAKE_UP_EVERY_S: Final = 10.0
"""While changes may go unnoticed, what they may touch is invalidated this often."""


class _Known(NamedTuple):
    finding: Finding
    since_s: float
    told_s: float
    made_up_s: float


class Assumptions:
    """The assumptions of one worker, over all sessions. Each is a part of its health, and so of
    `cachebus_worker_up`."""

    def __init__(self, worker: str, names: Sequence[str], health: Health, clock: Clock = monotonic) -> None:
        self._worker = worker
        self._names = tuple(names)
        self._health = health
        self._clock = clock
        self._known: dict[tuple[str, str], _Known] = {}

    @property
    def stopped(self) -> bool:
        """Whether an assumption is broken without which nothing may be taken."""
        return any(known.finding.stops for known in self._known.values())

    def update(self, findings: Sequence[Finding]) -> list[Finding]:
        """Take in the broken assumptions; all others hold. Returns those by which changes may have gone unnoticed, and
        that are due to be made up for: when they begin, repeatedly while they last, and when they end."""
        now_s = self._clock()
        found = {(finding.assumption, finding.subject): finding for finding in findings}
        due = [self._ended(key, now_s) for key in self._known.keys() - found.keys()]
        due += [self._begun(key, finding, now_s) for key, finding in found.items()]
        for name in self._names:
            wrong = [str(finding) for (of, _), finding in found.items() if of == name and not finding.over]
            if wrong:
                self._health.down(name, "; ".join(wrong))
            else:
                self._health.up(name)
        return [finding for finding in due if finding is not None]

    def _begun(self, key: tuple[str, str], finding: Finding, now_s: float) -> Finding | None:
        """Note a broken assumption. It is logged when it is new, or has another problem or state than before, and every
        minute."""
        known = self._known.get(key)
        before = None if known is None else (known.finding.problem, known.finding.state)
        fresh = before != (finding.problem, finding.state)
        since_s = now_s if known is None else known.since_s
        told_s, made_up_s = (-MAKE_UP_EVERY_S, -MAKE_UP_EVERY_S) if known is None else (known.told_s, known.made_up_s)
        if fresh or now_s - told_s >= TELL_EVERY_S:
            told_s = now_s
            lasts = "" if fresh else f" (for {now_s - since_s:.0f} s)"
            logger.error("{}: {}: {}{}", self._worker, finding.assumption, finding, lasts)
        due = finding.missed and (fresh or now_s - made_up_s >= MAKE_UP_EVERY_S)
        self._known[key] = _Known(finding, since_s, told_s, now_s if due else made_up_s)
        return finding if due else None

    def made_up(self, findings: Sequence[Finding]) -> None:
        """What went unnoticed by these is made up for. Those that are over are forgotten."""
        for finding in findings:
            if finding.over:
                self._known.pop((finding.assumption, finding.subject), None)

    def _ended(self, key: tuple[str, str], now_s: float) -> Finding | None:
        known = self._known.pop(key)
        if not known.finding.over:
            logger.info("{}: {}: {}: is in order again, after {:.0f} s", self._worker, *key, now_s - known.since_s)
        return known.finding if known.finding.missed and not known.finding.over else None
