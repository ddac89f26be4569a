"""What is kept as long as others keep it: which of it is there now."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

T = TypeVar("T")


def now_in(weak: Collection[T]) -> list[T]:
    """What is in a weak set, or the keys of a weak dictionary; from any thread, though another adds to it."""
    while True:
        try:
            return list(weak)
        except RuntimeError:  # something was added meanwhile
            continue
