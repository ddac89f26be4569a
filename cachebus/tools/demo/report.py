"""The report on a run: a table for people, or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachebus.tools.demo.figures import Figures
from cachebus.tools.demo.pipeline import DIRECT
from cachebus.tools.demo.plan import DemoPlan
from cachebus.tools.demo.run import Outcome

NONE: Final = "-"


def printed(outcome: Outcome, console: Console) -> None:
    """Print the table and the verdict."""
    console.print()
    console.print(_table(outcome))
    for line in _incident_lines(outcome):
        console.print(Text(line))
    broken = outcome.broken()
    for line in broken:
        console.print(Text(f"BROKEN: {line}.", style="bold red"))
    if not broken:
        console.print(Text(_kept(outcome), style="bold green"))


def as_json(outcome: Outcome) -> str:
    """The same figures for a program."""
    plan = outcome.plan
    data: dict[str, Any] = {
        "nodes": plan.nodes,
        "trace": None if plan.trace is None else str(plan.trace),
        "staleness_bound_s": plan.bound_s,
        "write_ratio": plan.write_ratio,
        "seed": plan.seed,
        "bus": plan.bus,
        "writes": plan.writes,
        "cachebus": asdict(outcome.coherent),
        "incident": None,
        "coherence_off": None,
        "broken": outcome.broken(),
    }
    if outcome.incident is not None:
        incident = outcome.incident
        data["incident"] = {
            "node": incident.node,
            "lasted_s": _between(incident.began_s, incident.restored_s),
            "lease_lapsed_after_s": _between(incident.began_s, incident.lapsed_s),
            "recovered_after_s": _between(incident.restored_s, incident.recovered_s),
        }
    if outcome.off is not None:
        data["coherence_off"] = asdict(outcome.off) | {"ttl_s": plan.ttl_s}
        del data["coherence_off"]["lags"]
    return json.dumps(_rounded(data), indent=2)


def _table(outcome: Outcome) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("cachebus", justify="right", style="bold")
    if outcome.off is not None:
        table.add_column(f"dict, TTL {outcome.plan.ttl_s:g} s", justify="right")
    for name, of_coherent, of_off in _rows(outcome.plan):
        cells = [name, of_coherent(outcome.coherent)]
        if outcome.off is not None:
            cells.append(NONE if of_off is None else of_off(outcome.off))
        table.add_row(*cells)
    return table


Cell = Callable[[Figures], str]


def _rows(plan: DemoPlan) -> list[tuple[str, Cell, Cell | None]]:
    bound_s, carried = plan.bound_s, plan.writes != DIRECT
    known = "from commit until a node knows" if carried else "until another node knows"
    lost: list[tuple[str, Cell, Cell | None]] = [("  committed and never told", lambda f: f"{f.lost:,}", None)]

    def both(name: str, cell: Cell) -> tuple[str, Cell, Cell | None]:
        return name, cell, cell

    return [
        both("reads", lambda f: f"{f.reads:,}"),
        both("  answered from the node's memory", lambda f: f"{f.l1_share:.1%}"),
        ("  answered from the shared store", lambda f: f"{f.l2_share:.1%}", None),
        both("loads from the database", lambda f: f"{f.loads:,}"),
        both("  loads saved", lambda f: f"{f.loads_saved:.1%}"),
        both("writes, each invalidated", lambda f: f"{f.writes:,}"),
        (f"  {known}, p50", lambda f: _ms(f.lags.p50_s), None),
        (f"  {known}, p99", lambda f: _ms(f.lags.p99_s), None),
        *(lost if carried else ()),
        both("stale reads, of any age", lambda f: f"{f.stale:,}"),
        both(f"  older than the bound of {bound_s:g} s", lambda f: f"{f.stale_beyond:,}"),
        both("  the stalest", lambda f: _age(f.oldest_s)),
        both("  that missed the node's own write", lambda f: f"{f.own_missed:,}"),
    ]


def _incident_lines(outcome: Outcome) -> list[str]:
    incident = outcome.incident
    if incident is None:
        return [
            "No incident: the run was too short for one." if outcome.plan.cut else "No incident: none was asked for."
        ]
    if (
        incident.began_s is None
        or incident.restored_s is None
        or incident.lapsed_s is None
        or incident.recovered_s is None
    ):
        return [f"Node {incident.node} was cut off, and the run ended before that was over."]
    hung_s, lapse_s = incident.restored_s - incident.began_s, incident.lapsed_s - incident.began_s
    back_s = incident.recovered_s - incident.restored_s
    return [
        (
            f"Node {incident.node} hung for {hung_s:.1f} s: its lease lapsed after {lapse_s:.1f} s, "
            f"and it was back {back_s:.1f} s after its network."
        )
    ]


def _kept(outcome: Outcome) -> str:
    figures = outcome.coherent
    if outcome.plan.writes != DIRECT:
        return (
            f"KEPT: each of {figures.writes:,} committed writes reached every node, though a worker was killed; of "
            f"{figures.checked:,} reads none was stale by more than {outcome.plan.bound_s:g} s after L2 was told."
        )
    return (
        f"KEPT: of {figures.checked:,} reads, each checked against the history of {figures.writes:,} writes, "
        f"none was stale by more than {outcome.plan.bound_s:g} s."
    )


def _between(start_s: float | None, end_s: float | None) -> float | None:
    """Seconds from one to the other; None where either never was."""
    return None if start_s is None or end_s is None else end_s - start_s


def _rounded(data: Any) -> Any:
    """Numbers rounded to six places: the rest is noise."""
    if isinstance(data, dict):
        return {name: _rounded(value) for name, value in data.items()}
    return round(data, 6) if isinstance(data, float) else data


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _age(seconds: float) -> str:
    return NONE if not seconds else f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
