"""A finding of the doctor: what a check has found, what it means, and the commands that repair it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Severity(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    ADVICE = "advice"
    """Promises are kept, except under a rare fault; but something costs more than it must."""
    PROBLEM = "problem"
    """A promise breaks when a fault comes, or cachebus does not work at all."""
    UNKNOWN = "not checked"
    """It could not be checked; the finding says why."""


G1: Final = "G1 bounded staleness"
G3: Final = "G3 sessions"
G4: Final = "G4 strong on request"
G5: Final = "G5 no stale fill"
G7: Final = "G7 restart and failover"
ON_FAILOVER: Final = (G1, G3, G4, G5, G7)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `mend`: commands for redis-cli, exactly as they are to be typed."""

    check: str
    level: Severity
    says: str
    """What was found."""
    means: str = ""
    """What it means, in plain words."""
    promises: tuple[str, ...] = ()
    """The promises that it touches."""
    mend: tuple[str, ...] = ()
    conf: tuple[str, ...] = ()
    """The same for redis.conf, so that it outlives a restart."""
    otherwise: str = ""
    """What to do if no command of the server repairs it."""
    at: str = ""
    """The server that the commands are for, if it is another one than the checked one."""
    shell: tuple[str, ...] = ()
    """Commands for a shell, exactly as they are to be typed."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "check": self.check,
            "level": self.level.value,
            "says": self.says,
            "means": self.means,
            "promises": list(self.promises),
            "mend": list(self.mend),
            "conf": list(self.conf),
            "otherwise": self.otherwise,
            "at": self.at,
            "shell": list(self.shell),
        }


def ok(check: str, says: str, means: str = "") -> Finding:
    """Nothing to do."""
    return Finding(check, Severity.OK, says, means)


def unknown(check: str, why: str, means: str = "", otherwise: str = "") -> Finding:
    """It could not be looked at."""
    return Finding(check, Severity.UNKNOWN, f"could not be checked: {why}", means, otherwise=otherwise)


def config_set(**settings: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The commands that set these (`_` in a name stands for `-`), and the lines of redis.conf that keep them."""
    named = [(name.replace("_", "-"), value) for name, value in settings.items()]
    commands = tuple(f"CONFIG SET {name} {_quoted(value)}" for name, value in named)
    return commands, tuple(f"{name} {value or _quoted(value)}" for name, value in named)


def _quoted(value: str) -> str:
    return f'"{value}"' if not value or " " in value else value


WELL: Final = 0
BAD: Final = 1
UNSEEN: Final = 2
NOT_ALL_SEEN: Final = 3


def status_of(findings: Iterable[Finding], *, strict: bool) -> int:
    """The exit status: `BAD` where there is a problem, or with `strict` an advice; else `NOT_ALL_SEEN` where something
    could not be checked, since nobody knows what that hides; else `WELL`."""
    levels = {finding.level for finding in findings}
    if Severity.PROBLEM in levels or (strict and Severity.ADVICE in levels):
        return BAD
    return NOT_ALL_SEEN if Severity.UNKNOWN in levels else WELL
