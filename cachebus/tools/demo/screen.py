"""Shows a run while it lasts: as a live table in a terminal, as plain lines anywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cachebus.tools.demo.board import BoardRow, View

PLAIN_EVERY_S: Final = 3.0
BAR_COLUMNS: Final = 40


class DemoScreen(Protocol):
    """Where a run shows itself; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None:
        """Print a line that stays."""

    def show(self, view: View) -> None:
        """Show the state of the run."""

    def rest(self) -> None:
        """Show nothing until the next `show`."""


class LiveScreen:
    """For a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(Text(text))  # wrapped between words; the terminal itself would break within them

    def show(self, view: View) -> None:
        """Draw the table anew."""
        self._live.update(_drawn(view), refresh=True)

    def rest(self) -> None:
        """Take the table away."""
        self._live.update(Text(""), refresh=True)


class PlainScreen:
    """For a file or a pipe: a block of lines every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Print a line."""
        self._print(text)

    def show(self, view: View) -> None:
        """Print the nodes, a line each, when it is time to."""
        if view.elapsed_s < self._next_s:
            return
        self._next_s = view.elapsed_s - view.elapsed_s % PLAIN_EVERY_S + PLAIN_EVERY_S
        if view.elapsed_s < PLAIN_EVERY_S:
            return
        self._print(f"{view.elapsed_s:4.0f} s  {view.progress:4.0%}  {view.title}")
        for row in view.rows:
            self._print("  " + _line(row, coherent=view.coherent))

    def rest(self) -> None:
        """The next run begins at 0 s."""
        self._next_s = 0.0

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def screen_on(console: Console) -> DemoScreen:
    """The screen that suits the console."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


def _drawn(view: View) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    columns = ["node", "req/s", "L1", "L2", "loads/s"]
    columns += ["applied", "behind", "lease", ""] if view.coherent else []
    for name in columns:
        table.add_column(name, justify="left" if name in ("", "node") else "right", header_style="dim", no_wrap=True)
    for row in view.rows:
        table.add_row(*_cells(row, coherent=view.coherent))
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=1.0, completed=view.progress, width=BAR_COLUMNS),
        f"{view.progress:4.0%}",
        f"{view.elapsed_s:.0f} s",
    )
    return Group(Text(view.title, style="bold"), table, bar)


def _cells(row: BoardRow, *, coherent: bool) -> list[RenderableType]:
    cells: list[RenderableType] = [
        str(row.node),
        f"{row.requests:,.0f}",
        f"{row.l1_share:.0%}",
        f"{row.l2_share:.0%}" if coherent else "-",
        f"{row.loads:,.0f}",
    ]
    if coherent:
        lapsed = row.lease_left_s <= 0
        lease = Text("lapsed", style="bold red") if lapsed else Text(f"{row.lease_left_s:.1f} s", style="green")
        behind = Text(f"{row.behind:,}", style="yellow" if row.behind > BEHIND_NOTED else "")
        cells += [f"{row.applied:,}", behind, lease, Text(row.state, style="yellow")]
    return cells


BEHIND_NOTED: Final = 20
"""A few events more or less are on their way at any moment."""


def _line(row: BoardRow, *, coherent: bool) -> str:
    text = f"node {row.node}: {row.requests:6,.0f} req/s  L1 {row.l1_share:4.0%}"
    if coherent:
        lease = f"{row.lease_left_s:.1f} s" if row.lease_left_s > 0 else "lapsed"
        text += f"  L2 {row.l2_share:4.0%}  loads {row.loads:4,.0f}/s  applied {row.applied:6,}"
        text += f"  behind {row.behind:4,}  lease {lease:>6}  {row.state}"
    else:
        text += f"  loads {row.loads:4,.0f}/s"
    return text.rstrip()
