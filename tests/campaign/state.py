"""How far a campaign has come: every leg that is over, in a file, so that it can go on after it was stopped."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cachebus.tools.verify.checker.verdict import EDGES_S, Verdict

SUMMED = (
    "reads",
    "judged",
    "tokens",
    "writes",
    "repeated",
    "loads",
    "unsure",
    "failed",
    "stale_beyond",
    "foreign",
    "looked",
)


@dataclass
class Row:
    """One kind of server: the sum of its legs."""

    kind: str
    server: str = ""
    legs: int = 0
    seconds: float = 0.0
    seeds: list[int] = field(default_factory=list)
    sums: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    ages: list[int] = field(default_factory=lambda: [0] * (len(EDGES_S) + 1))
    worst_age_s: float = 0.0
    broken: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Take in a leg."""
        self.server = verdict.server
        self.legs += 1
        self.seconds += verdict.seconds
        self.seeds.append(verdict.seed)
        self.sums.update({name: getattr(verdict, name) for name in SUMMED})
        self.faults.update(verdict.faults)
        self.ages = [a + b for a, b in zip(self.ages, verdict.ages, strict=True)]
        self.worst_age_s = max(self.worst_age_s, verdict.worst_age_s)
        self.broken += [f"seed {verdict.seed}: {finding}" for finding in verdict.broken]

    def done(self, reads: int, invalidations: int) -> bool:
        """Whether it has read and written enough."""
        return self.sums["judged"] >= reads and self.sums["writes"] >= invalidations


def loaded(file: Path) -> dict[str, Row]:
    """The rows of a file; none where there is no file."""
    if not file.exists():
        return {}
    rows = {}
    for told in json.loads(file.read_text())["rows"]:
        row = Row(**told)
        row.sums, row.faults = Counter(row.sums), Counter(row.faults)
        rows[row.kind] = row
    return rows


def save(file: Path, rows: dict[str, Row]) -> None:
    """Write them, in one step."""
    told: dict[str, Any] = {"rows": [vars(row) for row in rows.values()]}
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(told, indent=1) + "\n")
    beside.replace(file)


HEADS = (
    "server",
    "reads judged",
    "invalidations",
    "faults",
    "kinds of fault",
    "stale beyond D",
    "another tenant's",
    "other promises broken",
    "oldest stale read",
    "consistent within D",
    "legs",
    "seeds",
)


def table(rows: list[Row]) -> str:
    """As markdown: a row each, and all of them together."""
    whole = Row("all", "all")
    for row in rows:
        whole.sums.update(row.sums)
        whole.faults.update(row.faults)
        whole.legs += row.legs
        whole.worst_age_s = max(whole.worst_age_s, row.worst_age_s)
        whole.broken += row.broken
    lines = [HEADS, ("---", *["---:"] * (len(HEADS) - 2), "---"), *map(_cells, [*rows, whole])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    sums = row.sums
    fresh = 1 - sums["stale_beyond"] / max(1, sums["judged"])
    # FallbackKind reads and other tenants' values have columns of their own.
    others = sum("G1 (" not in line and "G8 (" not in line for line in row.broken)
    return (
        row.server,
        f"{sums['judged']:,}",
        f"{sums['writes']:,}",
        f"{sum(row.faults.values()):,}",
        f"{len(row.faults)}",
        f"{sums['stale_beyond']:,}",
        f"{sums['foreign']:,}",
        f"{others}",
        f"{row.worst_age_s * 1000:.0f} ms",
        f"{fresh:.7%}",
        f"{row.legs}",
        _seeds(row.seeds),
    )


def _seeds(seeds: list[int]) -> str:
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
