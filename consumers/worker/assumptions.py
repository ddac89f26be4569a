"""What a source assumes, such as that a trigger is there. A broken assumption is reported while it lasts. If changes
may go unnoticed by it, what they may have touched is invalidated."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from cachebus.base.clock import Clock, monotonic
from cachebus.base.log import logger
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.worker.retry import TELL_EVERY_S
from cachebus.consumers.worker.source import Finding, FindingKey
from cachebus.consumers.worker.transactions import joined

MAKE_UP_EVERY_S: Final = 10.0
"""While changes may go unnoticed, what they may touch is invalidated this often."""

OWED: Final = "what changes may have touched that went unnoticed is being let go of"


class _Known(NamedTuple):
    finding: Finding
    since_s: float
    told_s: float
    made_up_s: float
    is_done: bool = False
    """Whether it was over, and is made up for: at the next look it is in order again, or has happened once more."""


class Assumptions:
    """The assumptions of one worker, over all sessions. Each is a part of its health, and so of
    `cachebus_worker_up`."""

    def __init__(self, worker: str, names: Sequence[str], health: WorkerHealth, clock: Clock = monotonic) -> None:
        self._worker = worker
        self._names = tuple(names)
        self._health = health
        self._clock = clock
        self._known: dict[FindingKey, _Known] = {}
        self._wrong: dict[str, list[str]] = {}
        """What the last check has found wrong and lasting, by assumption."""
        self._failed: dict[tuple[str, str], str] = {}
        """What is not made up for yet, and why."""

    @property
    def stopped(self) -> bool:
        """Whether an assumption is broken without which nothing may be taken."""
        return any(known.finding.stops and not known.is_done for known in self._known.values())

    def update(self, findings: Sequence[Finding]) -> list[Finding]:
        """Take in the broken assumptions; all others hold. Returns those by which changes may have gone unnoticed, and
        that are due to be made up for: when they begin, repeatedly while they last, and when they end."""
        now_s = self._clock()
        found = _by_key(findings)
        since_s = {key.about: known.since_s for key, known in reversed(self._known.items())}
        gone = {key: self._known.pop(key) for key in self._known.keys() - found.keys()}
        due = [self._begun(finding, now_s, since_s.get(finding.about, now_s)) for finding in found.values()]
        due += self._ended(gone, {key.about for key in found}, {one.about for one in due if one is not None}, since_s)
        self._wrong = {
            name: [str(one) for one in found.values() if one.assumption == name and not one.over]
            for name in self._names
        }
        self._tell()
        return [finding for finding in due if finding is not None]

    def _tell(self) -> None:
        for name in self._names:
            wrong = [*self._wrong.get(name, ()), *(why for (of, _), why in self._failed.items() if of == name)]
            if wrong:
                self._health.down(name, joined(wrong))
            else:
                self._health.up(name)

    def _begun(self, finding: Finding, now_s: float, since_s: float) -> Finding | None:
        """Note a broken assumption. It is logged when it is new, or has another problem or state than before, and every
        minute."""
        known = self._known.get(finding.key)
        before = None if known is None or known.is_done else (known.finding.problem, known.finding.state)
        fresh = before != (finding.problem, finding.state)
        told_s, made_up_s = (-MAKE_UP_EVERY_S, -MAKE_UP_EVERY_S) if known is None else (known.told_s, known.made_up_s)
        if fresh or now_s - told_s >= TELL_EVERY_S:
            told_s = now_s
            lasts = "" if fresh else f" (for {now_s - since_s:.0f} s)"
            logger.error("{}: {}: {}{}", self._worker, finding.assumption, finding, lasts)
        # What is over needs no more than was owed for it, some of which may wait for a primary that is away.
        due = finding.missed and (fresh or (not finding.over and now_s - made_up_s >= MAKE_UP_EVERY_S))
        self._known[finding.key] = _Known(finding, since_s, told_s, now_s if due else made_up_s)
        return finding if due else None

    def _ended(
        self,
        gone: Mapping[FindingKey, _Known],
        lasting: Collection[tuple[str, str]],
        due: Collection[tuple[str, str]],
        since_s: Mapping[tuple[str, str], float],
    ) -> list[Finding]:
        """Tell what is in order again: what nothing else is found of. Returns what is due now that it has ended, as far
        as no more is `due` of the same anyway."""
        for about in {key.about: None for key in gone if key.about not in lasting}:
            if any(known.is_done or not key.over for key, known in gone.items() if key.about == about):
                lasted_s = self._clock() - since_s[about]
                logger.warning("{}: {}: {}: is in order again, after {:.0f} s", self._worker, *about, lasted_s)
        return [known.finding for key, known in gone.items() if key.missed and not key.over and key.about not in due]

    def owed(self, findings: Sequence[Finding]) -> None:
        """What went unnoticed by these is yet to be let go of: it is a part of the health meanwhile."""
        for finding in findings:
            self._failed.setdefault(finding.about, f"{finding.subject}: {OWED}")
        self._tell()

    def failed(self, findings: Sequence[Finding], why: str) -> None:
        """What went unnoticed by these can't be let go of: it is a part of the health until it is made up for."""
        for finding in findings:
            said = f"{finding.subject}: what changes may have touched can't be let go of, and is tried again: {why}"
            if self._failed.get(finding.about) != said:
                logger.error("{}: {}: {}", self._worker, finding.assumption, said)
            self._failed[finding.about] = said
        self._tell()

    def let_go(self, findings: Sequence[Finding]) -> None:
        """What went unnoticed by these is let go of, or waits for a part of L2 that is away. They stay until that is
        stored."""
        for finding in findings:
            self._failed.pop(finding.about, None)
        self._tell()

    def made_up(self, findings: Sequence[Finding]) -> None:
        """What went unnoticed by these is made up for. Those that are over need not be found again."""
        self.let_go(findings)
        for finding in findings:
            if finding.over and finding.key in self._known:
                self._known[finding.key] = self._known[finding.key]._replace(is_done=True)


def _by_key(findings: Sequence[Finding]) -> dict[FindingKey, Finding]:
    """The findings, those of one key as one."""
    found: dict[FindingKey, Finding] = {}
    for one in findings:
        other = found.get(one.key)
        if other is None:
            found[one.key] = one
        elif one != other:
            found[one.key] = other._replace(
                problem=f"{other.problem}; {one.problem}",
                remedy=joined((other.remedy, one.remedy)),
                stops=other.stops or one.stops,
                state=f"{other.state} {one.state}".strip(),
            )
    return found
