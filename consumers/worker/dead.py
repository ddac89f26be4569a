"""A dead letter: an item that a worker can never apply, kept with the reason. Nothing behind it has to wait."""

from __future__ import annotations

from typing import NamedTuple


class DeadLetter(NamedTuple):
    """What can't be applied, as it came."""

    payload: bytes
    reason: str
    """For people: which field is wrong and how, without values."""
    source: str
    """Where it came from: a table's row, a topic's partition and offset."""
    attempts: int
    """How often it has come to this end, this time included."""
    at_s: float | None = None
    """When it was made, in Unix seconds, where that is known."""
    key: bytes | None = None
    """That of its message, where it had one and it is to be kept."""
    headers: tuple[tuple[str, bytes], ...] = ()
    """Those of its message that are to be kept."""
    key_cut: bool = False
    """Whether it had a key that could not be kept."""
