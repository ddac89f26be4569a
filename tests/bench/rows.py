"""What the benchmark finds: one row a question, with what was wanted and what others reach."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

AT_MOST: Final = "<="
AT_LEAST: Final = ">="


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for a figure: `AT_MOST` or `AT_LEAST` so much."""

    sense: str
    bound: float

    def met_by(self, figure: float) -> bool:
        """Whether the figure keeps to it."""
        return figure <= self.bound if self.sense == AT_MOST else figure >= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure; `peers` has the same figure of others by their name, and `detail` what it is made of."""

    name: str
    what: str
    ours: float
    unit: str
    goal: Goal | None = None
    peers: dict[str, float] = field(default_factory=dict)
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.goal.met_by(self.ours)

    def as_json(self) -> dict[str, Any]:
        """The row in plain data."""
        return {**asdict(self), "met": self.met}


def at_most(bound: float) -> Goal:
    """The goal that a figure is no larger."""
    return Goal(AT_MOST, bound)


def at_least(bound: float) -> Goal:
    """The goal that a figure is no smaller."""
    return Goal(AT_LEAST, bound)


def number(figure: float) -> str:
    """Three digits that mean something: 0.214, 4.61, 93.8, 51,200."""
    size = abs(figure)
    places = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{figure:,.{places}f}"


def shown(figure: float, unit: str) -> str:
    """The figure with its unit."""
    return f"{number(figure)} {unit}"
