"""How much is measured, and how the user hears of it meanwhile."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Scale:
    """How many rounds and how large; `quick` says only whether everything runs."""

    processes: int
    rounds: int
    round_s: float
    io_rounds: int
    messages: int
    flood: int
    flood_rounds: int
    requests: int
    entries: int
    drops: int
    imports: int
    operations: int
    log_entries: int

    @classmethod
    def normal(cls) -> Self:
        """Some four minutes on two cores."""
        return cls(
            processes=5,
            rounds=20,
            round_s=0.006,
            io_rounds=25,
            messages=2500,
            flood=20_000,
            flood_rounds=5,
            requests=1_000_000,
            entries=100_000,
            drops=3,
            imports=9,
            operations=1000,
            log_entries=10_000,
        )

    @classmethod
    def quick(cls) -> Self:
        """Some seconds; the figures mean little."""
        return cls(
            processes=1,
            rounds=3,
            round_s=0.001,
            io_rounds=2,
            messages=40,
            flood=1000,
            flood_rounds=1,
            requests=6000,
            entries=2000,
            drops=1,
            imports=1,
            operations=256,
            log_entries=1000,
        )

    @classmethod
    def full(cls) -> Self:
        """The normal one with whole traces: some ten minutes more."""
        return replace(cls.normal(), requests=sys.maxsize)


class Progress:
    """One line on stderr that is written over; silent where nobody looks at a terminal."""

    def __init__(self, *, lively: bool) -> None:
        self._lively = lively
        self._group = ""

    def group(self, title: str) -> None:
        """A new group of measurements begins."""
        self._group = title
        self.step("")
        if not self._lively:
            print(f"  {title} ...", file=sys.stderr, flush=True)

    def step(self, text: str) -> None:
        """What it does now."""
        if self._lively:
            line = f"  {self._group} {text}"[:100]
            print(f"\r{line:<100}", end="", file=sys.stderr, flush=True)

    def done(self) -> None:
        """Leave the line clean."""
        if self._lively:
            print(f"\r{'':<100}\r", end="", file=sys.stderr, flush=True)


SILENT = Progress(lively=False)
