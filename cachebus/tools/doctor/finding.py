"""What the doctor says: one finding a check, and the commands that mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    ADVICE = "advice"
    """No promise is touched, or only under a fault that may never come; but something costs more than it need."""
    PROBLEM = "problem"
    """A promise is not kept when a fault comes, or cachebus does not work at all."""
    UNKNOWN = "not checked"
    """It could not be looked at; the finding says why."""


G1: Final = "G1 bounded staleness"
G3: Final = "G3 sessions"
G4: Final = "G4 strong on request"
G5: Final = "G5 no stale fill"
G7: Final = "G7 restart and failover"
ON_FAILOVER: Final = (G1, G3, G4, G5, G7)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `mend` are commands for redis-cli, exactly as they are to be typed."""

    check: str
    level: Level
    says: str
    """What is there."""
    means: str = ""
    """What that costs, in plain words."""
    promises: tuple[str, ...] = ()
    """Those that it touches."""
    mend: tuple[str, ...] = ()
    conf: tuple[str, ...] = ()
    """The same as lines of redis.conf, for the next start of the server."""
    otherwise: str = ""
    """What to do where no command of the server mends it."""
    at: str = ""
    """The server to type the commands at, where it is not the one that is looked at."""

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
        }


def ok(check: str, says: str, means: str = "") -> Finding:
    """Nothing to do."""
    return Finding(check, Level.OK, says, means)


def unknown(check: str, why: str, means: str = "", otherwise: str = "") -> Finding:
    """It could not be looked at."""
    return Finding(check, Level.UNKNOWN, f"could not be checked: {why}", means, otherwise=otherwise)


def config_set(**settings: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The commands that set these (`_` in a name stands for `-`), and the lines of redis.conf that keep them."""
    named = [(name.replace("_", "-"), value) for name, value in settings.items()]
    commands = tuple(f"CONFIG SET {name} {_quoted(value)}" for name, value in named)
    return commands, tuple(f"{name} {value or _quoted(value)}" for name, value in named)


def _quoted(value: str) -> str:
    return f'"{value}"' if not value or " " in value else value


def status_of(findings: Iterable[Finding], *, strict: bool) -> int:
    """The exit status: 1 where there is a problem, or with `strict` an advice; else 0."""
    bad = {Level.PROBLEM, Level.ADVICE} if strict else {Level.PROBLEM}
    return int(any(finding.level in bad for finding in findings))
