"""The findings for people, or as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from cachebus.keys.words import CONTROLS
from cachebus.settings import Settings
from cachebus.tools.doctor.facts import Server
from cachebus.tools.doctor.finding import Finding, Severity

_COLOURS: Final = {
    Severity.OK: "green",
    Severity.ADVICE: "yellow",
    Severity.PROBLEM: "bold red",
    Severity.UNKNOWN: "cyan",
}
_NAMES_WIDTH: Final = 18
_LEVELS_WIDTH: Final = 12
_LEAST_WIDTH: Final = 40


def printed(settings: Settings, server: Server, findings: Sequence[Finding], console: Console) -> None:
    """Print what was found: a line for what is right, a paragraph for what is not."""
    head = f"{server.name} at {server.address}, namespace {settings.namespace}, user {server.user}"
    under(head, findings, console)


def under(head: str, findings: Sequence[Finding], console: Console) -> None:
    """Print findings under a line that says of what they are, and how many there are of each level."""
    _line(console, Text(head))
    for finding in findings:
        _line(console, Text())
        _one(finding, console)
    _line(console, Text())
    counts = {level: sum(finding.level is level for finding in findings) for level in Severity}
    summary = ", ".join(f"{count} {level.value}" for level, count in counts.items() if count)
    _line(console, Text(f"{summary}.", style="bold"))


def _one(finding: Finding, console: Console) -> None:
    head = Text(f"{finding.level.value:{_LEVELS_WIDTH}}", style=_COLOURS[finding.level])
    head.append(f"{finding.check}: {finding.says}", style="default")
    _line(console, head)
    wide = max(_LEAST_WIDTH, console.width) - _LEVELS_WIDTH
    for text in (finding.means, _touched(finding)):
        for line in textwrap.wrap(text, wide):
            _indented(console, line)
    # Commands are never wrapped: they are there to be copied.
    for command in finding.mend:
        _indented(console, f"redis-cli{f' at {finding.at}' if finding.at else ''}> {command}", "bold")
    if finding.conf:
        _indented(console, "to keep it: CONFIG REWRITE, or in redis.conf:" if finding.mend else "in redis.conf:")
        for line in finding.conf:
            _indented(console, f"  {line}")
    for line in textwrap.wrap(finding.otherwise, wide):
        _indented(console, line)
    for command in finding.shell:
        _indented(console, f"$ {command}", "bold")


def _touched(finding: Finding) -> str:
    if finding.promises:
        return "Touches: " + ", ".join(finding.promises) + "."
    return "Touches no promise: what fails, fails loudly." if finding.level is Severity.PROBLEM else ""


def _indented(console: Console, text: str, style: str = "") -> None:
    _line(console, Text(" " * _LEVELS_WIDTH + text, style=style))


def _line(console: Console, text: Text) -> None:
    text.plain = CONTROLS.sub("?", text.plain)  # what a server says may be anything: it controls no terminal
    console.print(text, soft_wrap=True, highlight=False)


def as_dict(settings: Settings, server: Server, findings: Sequence[Finding]) -> dict[str, Any]:
    """The same for a program."""
    return {
        "server": server.name,
        "address": str(server.address),
        "user": server.user,
        "namespace": settings.namespace,
        "staleness_bound_s": settings.staleness_bound_s,
        "findings": [finding.as_dict() for finding in findings],
    }
