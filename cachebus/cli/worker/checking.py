"""`cachebus worker check NAME`: what a worker would find, without starting it."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from cachebus.consumers.worker.preflight import Checked
    from cachebus.consumers.worker.worker import Worker

WIDE: Final = 14


_asked: ContextVar[Literal["", "text", "json"]] = ContextVar("_asked", default="")
"""Whether the command that runs is one of `cachebus worker check`, and how it is to tell what it finds."""


def begin(*, as_json: bool) -> None:
    """The worker that is made next is to be looked at, and not to be run."""
    _asked.set("json" if as_json else "text")


def is_asked() -> bool:
    """Whether it is."""
    return bool(_asked.get())


def check(make: Callable[[], Worker]) -> None:
    """Make the worker, look, and end with the exit status that tells how it is: 0, or 1 where something is wrong."""
    from cachebus.consumers.worker.preflight import preflight
    from cachebus.consumers.worker.source_worker import SourceWorker

    async def main() -> tuple[str, list[Checked]]:
        worker = make()
        if not isinstance(worker, SourceWorker):
            raise TypeError("this worker can't be looked at")
        return worker.name, await preflight(worker)

    name, seen = asyncio.run(main())
    if _asked.get() == "json":
        sys.stdout.write(json.dumps(as_dict(name, seen), indent=2) + "\n")
    else:
        printed(name, seen, Console())
    raise typer.Exit(int(any(one.findings or not one.looked_at for one in seen)))


def printed(name: str, seen: Sequence[Checked], console: Console) -> None:
    """A line for what is right, a paragraph for what is not. What is there to be copied is never wrapped."""
    console.print(Text(f"worker {name}"), soft_wrap=True)
    for one in seen:
        if not one.looked_at:
            console.print(Text(f"{'not checked':{WIDE}}{one.what}", style="cyan"), soft_wrap=True)
        elif not one.findings:
            console.print(Text(f"{'ok':{WIDE}}{one.what}", style="green"), soft_wrap=True)
        for finding in one.findings:
            console.print(Text(f"{'problem':{WIDE}}{one.what}: {finding.subject}", style="bold red"), soft_wrap=True)
            for line in textwrap.wrap(finding.problem, max(40, console.width - WIDE)):
                console.print(Text(" " * WIDE + line), soft_wrap=True)
            if finding.missed:
                console.print(Text(" " * WIDE + "changes go unnoticed by it"), soft_wrap=True)
            if finding.remedy:
                console.print(Text(" " * WIDE + "to mend it:"), soft_wrap=True)
                console.print(Text(" " * WIDE + f"  {finding.remedy}", style="bold"), soft_wrap=True)


def as_dict(name: str, seen: Sequence[Checked]) -> dict[str, Any]:
    """The same for a program."""
    return {
        "worker": name,
        "checks": [
            {"check": one.what, "looked_at": one.looked_at, "problems": [finding._asdict() for finding in one.findings]}
            for one in seen
        ],
    }
