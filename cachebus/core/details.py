"""What few entries of L1 carry beside their value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sys import getsizeof
from typing import cast

from cachebus.core.answers import NEVER
from cachebus.l1 import Entry
from cachebus.wire.record import Record

INF = float("inf")
DETAILS_BYTES, COPIER_BYTES = 240, 440
"""Upper estimates of what an entry's details take beside its tags, and what makes copies beside its payload."""


class Details:
    """What few entries need: everything that makes a hit take the slow path, and the tags."""

    __slots__ = ("absent", "decode", "fallback_until", "not_found", "soft_until", "tags", "version")

    def __init__(
        self,
        *,
        absent: bool = False,
        not_found: bool = False,
        soft_until: float = INF,
        fallback_until: float = NEVER,
        tags: Sequence[str] = (),
        version: bytes = b"",
        decode: Callable[[], object] | None = None,
    ) -> None:
        self.absent = absent
        """Nothing is in L2 under this key; only said for hierarchical searches, and for D at most."""
        self.not_found = not_found
        """The source says that there is nothing."""
        self.soft_until = soft_until
        self.fallback_until = fallback_until
        """Until when an expired value may be the fallback for a failing source."""
        self.tags = tags
        self.version = version
        self.decode = decode
        """Makes a copy of the value for each caller, where the policy wants that."""

    def size_bytes(self, record: Record) -> int:
        """What this takes, with all that it holds of the record that it was made from."""
        size = DETAILS_BYTES + sum(map(getsizeof, self.tags))
        return size if self.decode is None else size + COPIER_BYTES + len(record.payload)


ABSENT = Details(absent=True)


def details(entry: Entry) -> Details | None:
    """What an entry has beyond the ordinary."""
    return cast("Details | None", entry.extra)
