"""What a write or invalidation gives back: where it stands in the shard's history, and what it addressed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from cachebus.core.ports import Position

_FORM = re.compile(r"([0-9]{1,5})\.([0-9a-f]{16})\.([0-9]{1,16})").fullmatch


class Receipt(msgspec.Struct, frozen=True):
    """A write's receipt, and the session token for it: a read with `after=receipt` sees the write, on any node.

    `str(receipt)` is short enough for a header; `Receipt.parse` reads it back, checked, since it may come from outside.
    """

    shard: int
    epoch: str
    seq: int
    status: str = "applied"
    """"applied"; or "pending": it waits on this node for L2, and stands for nothing yet."""
    stored: bool = True
    """False when nothing was stored: `add` found a value, or the cache is disabled."""
    targets: Mapping[str, int] = msgspec.field(default_factory=dict)
    """How many keys and scopes were addressed, by data type."""
    confirmed: tuple[str, ...] = ()
    """After `wait="nodes"`: the ids of the nodes that have applied it."""
    lapsed: tuple[str, ...] = ()
    """After `wait="nodes"`: the ids of those that have not, and may serve nothing from their memory until they do."""

    @property
    def position(self) -> Position:
        """The point in the shard's history."""
        return Position(self.epoch.encode(), self.seq)

    def __str__(self) -> str:
        return f"{self.shard}.{self.epoch}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """The receipt in a string made by `str(receipt)`; `ValueError` for anything else."""
        found = _FORM(str(text))
        if found is None:
            raise ValueError("not a receipt: expected SHARD.EPOCH.SEQ as str(receipt) writes it")
        return cls(int(found[1]), found[2], int(found[3]))


NOTHING_DONE = Receipt(0, "0" * 16, 0, stored=False)
"""The receipt of a disabled cache."""


def position_of(after: Receipt | str | None) -> Position | None:
    """The place that a read must have seen; `ValueError` for what is no receipt, or a pending one."""
    if after is None:
        return None
    receipt = after if isinstance(after, Receipt) else Receipt.parse(after)
    if receipt.status == "pending":
        raise ValueError("a pending receipt stands for nothing yet: read without `after`, or wait for it")
    return receipt.position
