"""The findings for people: a table and two charts, in colour on a terminal, else plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from math import log
from typing import Final

from tests.bench.rows import AT_LEAST, Row, shown

BAR: Final = 40
HEAD: Final = ("what", "ours", "goal", "met?", "peers")
MARKS: Final = {True: "yes", False: "NO", None: ""}


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """A row's text, column by column."""
    goal = "" if row.goal is None else f"{row.goal.sense} {row.goal.bound:g}"
    peers = ", ".join(f"{name} {shown(figure, '').strip()}" for name, figure in row.peers.items())
    return row.what, shown(row.ours, row.unit), goal, MARKS[row.met], peers


def plain(rows: Sequence[Row], *, details: bool = True) -> Iterator[str]:
    """The table in aligned lines; what a figure is made of stands in brackets behind."""
    lines = [HEAD, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line, row in zip(lines, [None, *rows], strict=True):
        what, ours, goal, met, peers = line
        detail = f"  ({row.detail})" if row is not None and row.detail and details else ""
        text = f"{what:<{widths[0]}}  {ours:>{widths[1]}}  {goal:<{widths[2]}}  {met:<{widths[3]}}  {peers}{detail}"
        yield text.rstrip()


def chart(rows: Sequence[Row]) -> Iterator[str]:
    """How much of each goal is used up; then the ways to a hit, in units of an async dict.get."""
    aimed = [row for row in rows if row.goal is not None and row.goal.bound > 0]
    if aimed:
        yield "share of the goal that is used up: at the mark | it is just met, beyond it missed"
        for row in aimed:
            assert row.goal is not None
            used = row.goal.bound / row.ours if row.goal.sense == AT_LEAST else row.ours / row.goal.bound
            length = min(BAR, max(1, round(used * BAR / 2)))
            bar = list(f"{'#' * length:<{BAR}}")
            bar[BAR // 2] = "|"
            yield f"  {row.name:<24} {''.join(bar)} {used:.2f}{' ->' if used > 2 else ''}"
    hits = {f"cachebus {row.name.removeprefix('hit.')}": row.ours for row in rows if row.name.startswith("hit.")}
    for row in rows:
        hits |= row.peers if row.name.startswith("hit.") else {}
    if hits:
        yield ""
        yield "a hit, in units of an async dict.get, logarithmic"
        longest = log(max(hits.values()))
        for name, figure in sorted(hits.items(), key=lambda item: item[1]):
            yield f"  {name:<24} {'#' * max(1, round(log(max(figure, 1.01)) / longest * BAR)):<{BAR}} {figure:.1f}"


def show(rows: Sequence[Row], *, terminal: bool) -> None:
    """Print all."""
    if terminal and find_spec("rich"):
        _coloured(rows)
    else:
        print("\n".join(plain(rows)))
    print()
    print("\n".join(chart(rows)))


def _coloured(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*HEAD, row_styles=["", "dim"])
    for row in rows:
        what, ours, goal, met, peers = cells(row)
        behind = f"\n{row.detail}" if row.detail else ""
        style = {True: "green", False: "bold red", None: ""}[row.met]
        # Texts, since what stands in brackets would else be read as a style.
        table.add_row(Text(what + behind), Text(ours, "bold"), Text(goal), Text(met, style), Text(peers))
    Console().print(table)
