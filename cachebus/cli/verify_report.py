"""Showing a run while it lasts, and its verdict afterwards."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cachebus.tools.verify.checker.verdict import EDGES_S, Verdict, nines
from cachebus.tools.verify.run import RunListener, RunProgress

PLAIN_EVERY_S: Final = 5.0
BAR_COLUMNS: Final = 40
BAR: Final = "\u2588"


class Screen(RunListener):
    """Shows a run on a console: one line that changes in a terminal, a line now and then anywhere else."""

    def __init__(self, console: Console, title: str = "") -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next_s = 0.0
        self._doing = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print it."""
        self._console.print(Text(line), soft_wrap=True)

    def show(self, progress: RunProgress) -> None:
        """Draw it, or print it when it is time to."""
        line = self._title + _line(progress)
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif progress.elapsed_s >= self._next_s or progress.doing != self._doing:
            self._next_s = progress.elapsed_s - progress.elapsed_s % PLAIN_EVERY_S + PLAIN_EVERY_S
            self._doing = progress.doing
            self.say(line)


def _line(progress: RunProgress) -> str:
    now = progress.doing or ", ".join(progress.under_way) or "calm"
    return (
        f"{min(progress.elapsed_s, progress.seconds):4.0f} of {progress.seconds:.0f} s  {progress.reads:,} reads  "
        f"{progress.writes:,} writes  {progress.faults} faults  now: {now}"
    )


def printed(verdict: Verdict, console: Console) -> None:
    """Print the figures, the histogram, and what broke."""
    for line in as_lines(verdict):
        console.print(Text(line), soft_wrap=True)
    for finding in verdict.broken:
        console.print(Text(f"BROKEN: {finding}", style="bold red"), soft_wrap=True)
        for line in finding.story:
            console.print(Text(f"  {line}"), soft_wrap=True)
    if verdict.broken:
        counts = ", ".join(f"{name} {count:,} times" for name, count in sorted(verdict.counts.items()) if count)
        console.print(Text(f"Broken: {counts}. Replay: --seed {verdict.seed}", style="bold red"), soft_wrap=True)
    else:
        console.print(Text(_kept(verdict), style="bold green"), soft_wrap=True)


def as_lines(verdict: Verdict) -> list[str]:
    """The figures, as lines of text."""
    faults = ", ".join(f"{name} {count}" for name, count in verdict.faults.items()) or "none"
    rows = [
        ("reads", f"{verdict.reads:,}, of which {verdict.l1_hits / max(1, verdict.reads):.0%} from memory"),
        ("  judged", f"{verdict.judged:,}, {verdict.tokens:,} of them with a token"),
        ("  raised", f"{verdict.failed:,} (L2 or the source was away)"),
        ("writes and invalidations", f"{verdict.writes:,}, repeated {verdict.repeated:,} times"),
        ("loads from the source", f"{verdict.loads:,}, {verdict.loads_twice:,} beside another"),
        ("beside", ", ".join(f"{name} {count:,}" for name, count in verdict.ways.items() if count) or "nothing"),
        ("faults", f"{sum(verdict.faults.values())}: {faults}"),
        (f"stale beyond D = {verdict.bound_s:g} s", f"{verdict.stale_beyond:,}"),
        ("  of any age", f"{verdict.stale:,}, the oldest {verdict.worst_age_s * 1000:.0f} ms"),
        ("another tenant's value", f"{verdict.foreign:,}"),
        ("looked at, at rest", f"{verdict.looked:,} items"),
        ("consistent within D", nines(verdict.within_bound, verdict.judged)),
    ]
    if verdict.unsure:
        rows.insert(7, ("not judged", f"{verdict.unsure:,} reads of values whose set had raised"))
    width = max(len(name) for name, _ in rows) + 2
    return ["", *(f"{name:{width}}{text}" for name, text in rows), "", *_histogram(verdict), ""]


def _histogram(verdict: Verdict) -> list[str]:
    lines = ["age of stale reads         reads   consistent within it"]
    most = max(1, *verdict.ages)
    for place, count in enumerate(verdict.ages):
        if count == 0 and not any(verdict.ages[place:]):
            break
        edge_s = EDGES_S[place] if place < len(EDGES_S) else None
        name = f"up to {_age(edge_s)}" if edge_s is not None else f"over {_age(EDGES_S[-1])}"
        share = "" if edge_s is None else nines(verdict.within(edge_s), verdict.judged)
        bar = BAR * max(count > 0, round(BAR_COLUMNS * count / most))
        lines.append(f"  {name:14} {count:15,}   {share:22} {bar}".rstrip())
    return lines if len(lines) > 1 else ["no read was stale at all"]


def _age(seconds: float) -> str:
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def _kept(verdict: Verdict) -> str:
    faults = sum(verdict.faults.values())
    return (
        f"KEPT: {verdict.judged:,} reads, {verdict.writes:,} writes, {faults} faults: "
        f"none was stale by more than {verdict.bound_s:g} s, and every other promise held. Seed {verdict.seed}."
    )
