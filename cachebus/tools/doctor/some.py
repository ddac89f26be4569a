"""The first of many, for people: a finding of 100,000 names is none that anybody reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FEW: Final = 4
SEVERAL: Final = 16


def some(each: Sequence[object], most: int = FEW, joined: str = ", ") -> str:
    """The first of them, and how many there are besides: "a, b and 7 more"."""
    shown = joined.join(map(str, each[:most]))
    return f"{shown} and {len(each) - most:,} more" if len(each) > most else shown
