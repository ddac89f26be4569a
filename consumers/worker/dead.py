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
    """How often it was set aside, this time included."""
    at_s: float | None = None
    """When it was set aside, in Unix seconds, where that is known."""
    key: bytes | None = None
    """The message's key, if it had one that is to be kept."""
    headers: tuple[tuple[str, bytes], ...] = ()
    """The message's headers that are to be kept."""
    key_cut: bool = False
    """Whether the message had a key that is too long to be kept."""
