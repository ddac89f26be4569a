"""`cachebus worker check NAME`: what a worker would find, without starting it."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar, copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import typer
from rich.console import Console
from rich.text import Text
from typer.main import get_command

from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from cachebus.consumers.worker.preflight import Checked
    from cachebus.consumers.worker.worker import Worker

WIDE: Final = 14
NOTHING_SEEN: Final = 2
STATUS: Final = (
    "Nothing is changed, but a namespace of L2 that is new is begun. Exit status: 0, also with warnings; 1 if "
    "something is wrong, 2 if nothing could be looked at."
)

_asked: ContextVar[Literal["", "text", "json"]] = ContextVar("_asked", default="")
"""Whether the command that runs is one of `cachebus worker check`, and how it is to tell what it finds."""
_wanted: ContextVar[list[WorkerReport] | None] = ContextVar("_wanted", default=None)
"""Where it puts what it finds, if not into its output."""
_only_made: ContextVar[bool] = ContextVar("_only_made", default=False)
"""Whether it ends once the worker is made."""


class WorkerReport(NamedTuple):
    """What a worker would find: L2 and the source come first, then what the source assumes."""

    name: str
    seen: Sequence[Checked]

    @property
    def status(self) -> int:
        """The exit status. What the source assumes is not looked at where it is away."""
        l2, source, *assumed = self.seen
        if l2.findings and source.findings and not any(one.looked_at for one in assumed):
            return NOTHING_SEEN
        return int(any(one.findings or not one.looked_at for one in self.seen))

    def printed(self, console: Console) -> None:
        """Print a line for what is right, a paragraph for what is not. What is there to be copied is never wrapped."""
        console.print(Text(f"worker {self.name}"), soft_wrap=True)
        for one in self.seen:
            _print(one, console)
        for one in self.seen:
            for warning in one.warnings:  # never wrapped: there may be SQL in it
                console.print(Text(f"{'warning':{WIDE}}{one.what}: {warning}", style="yellow"), soft_wrap=True)

    def as_dict(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "worker": self.name,
            "checks": [
                {
                    "check": one.what,
                    "looked_at": one.looked_at,
                    "problems": [finding._asdict() for finding in one.findings],
                    "warnings": list(one.warnings),
                }
                for one in self.seen
            ],
        }


def _print(one: Checked, console: Console) -> None:
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


def begin(*, as_json: bool) -> None:
    """The worker that is made next is to be looked at, and not to be run."""
    _asked.set("json" if as_json else "text")


def is_asked() -> bool:
    """Whether it is."""
    return bool(_asked.get())


def looks(run: Callable[..., None], text: str, without: Collection[str] = ()) -> Callable[..., None]:
    """The command that looks at what a worker needs, made of the one that runs it: with its options, `without` those
    that have it do something else. `text`: what the help says."""

    @wraps(run)
    def look(**given: Any) -> None:
        run(**given)

    signature = inspect.signature(run, eval_str=True)
    kept = [option for name, option in signature.parameters.items() if name not in without]
    look.__dict__.pop("__wrapped__")
    look.__dict__["__signature__"] = signature.replace(parameters=kept)
    look.__annotations__ = {option.name: option.annotation for option in kept}
    look.__doc__ = f"{text}\n\n{STATUS}"
    return look


def check(make: Callable[[], Worker]) -> None:
    """Make the worker, look, and end with the exit status that tells how it is: 0, 1 where something is wrong, 2 where
    nothing could be looked at."""
    from cachebus.consumers.worker.preflight import preflight
    from cachebus.consumers.worker.source_worker import SourceWorker

    async def main() -> WorkerReport:
        worker = make()
        if not isinstance(worker, SourceWorker):
            raise TypeError("this worker can't be looked at")
        return WorkerReport(worker.name, () if _only_made.get() else await preflight(worker))

    report, wanted = asyncio.run(main()), _wanted.get()
    if _only_made.get():
        raise typer.Exit
    if wanted is not None:
        wanted.append(report)
    elif _asked.get() == "json":
        sys.stdout.write(json.dumps(report.as_dict(), indent=2) + "\n")
    else:
        report.printed(Console())
    raise typer.Exit(report.status)


def made_by(group: typer.Typer, commands: Sequence[Sequence[str]]) -> None:
    """Make the workers of these commands of `cachebus worker check`, and look at nothing. Raises what they do: the
    `ConfigError` of options that can't be."""

    def run() -> None:
        _only_made.set(True)
        for command in commands:
            _run(group, command)

    copy_context().run(run)


def reports_of(group: typer.Typer, commands: Sequence[Sequence[str]]) -> list[WorkerReport]:
    """What these commands of `cachebus worker check` find, each with its options: all others are the environment's."""
    wanted = list[WorkerReport]()

    def run() -> None:
        _wanted.set(wanted)
        for command in commands:
            try:
                _run(group, command)
            except ConfigError as error:  # what only connecting tells, as of a URL
                wanted.append(_not_begun(command[0], str(error)))

    copy_context().run(run)
    return wanted


def _run(group: typer.Typer, command: Sequence[str]) -> None:
    get_command(group).main(list(command), prog_name="cachebus worker check", standalone_mode=False)


def _not_begun(name: str, why: str) -> WorkerReport:
    from cachebus.consumers.worker.preflight import Checked
    from cachebus.consumers.worker.source import Finding

    return WorkerReport(name, (Checked("l2", looked_at=False), Checked("options", (Finding("options", name, why),))))
