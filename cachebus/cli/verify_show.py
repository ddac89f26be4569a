"""A run as a command: its screen, its report, its files and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from cachebus.cli.performance import BROKEN, until_signalled
from cachebus.cli.verify_report import Screen, printed
from cachebus.errors import ConfigError
from cachebus.tools.harness.supervisor import NodeCrashed
from cachebus.tools.verify.checker.histogram import as_svg
from cachebus.tools.verify.nemesis.faults import possible
from cachebus.tools.verify.plan import VerifyPlan
from cachebus.tools.verify.run import Run


def perform(plan: VerifyPlan, *, picture: Path | None, json_file: Path | None) -> int:
    """Run the plan and report; the exit status. Raises `Interrupted`, and `CacheBusError` for what is set up wrong."""
    return until_signalled(_perform(plan, picture, json_file))


async def _perform(plan: VerifyPlan, picture: Path | None, json_file: Path | None) -> int:
    console = Console()
    with Screen(console) as screen:
        if plan.url is not None:
            _announce(plan, screen)
        try:
            verdict = await Run(plan, screen).verdict()
        except NodeCrashed as error:
            screen.say(f"BROKEN: {error}; seed {plan.seed}")
            return BROKEN
    printed(verdict, console)
    _write(json_file, json.dumps(verdict.as_dict(), indent=2) + "\n")
    _write(picture, as_svg(verdict))
    return 0 if verdict.ok else BROKEN


def _announce(plan: VerifyPlan, screen: Screen) -> None:
    left_out = sorted({f.name for f in plan.faults} - {f.name for f in possible(plan.faults, own=False, proxied=True)})
    screen.say(
        f"This is your server: {plan.nodes * plan.write_rate:g} writes a second within a namespace of its own, which "
        "is removed in the end; nothing is done to the server itself, nor to its other clients."
    )
    if left_out:
        screen.say(f"Left out, as they need a server of verify's own: {', '.join(left_out)}")


def _write(file: Path | None, text: str) -> None:
    if file is None:
        return
    try:
        file.write_text(text)
    except OSError as error:
        raise ConfigError(f"{file} can't be written: {error.strerror}") from None
