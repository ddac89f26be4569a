"""What few entries of L1 carry beside their value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sys import getsizeof

from cachebus.core.answers import INF, NEVER
from cachebus.l1 import Entry
from cachebus.wire.record import Record
from cachebus.wire.terms import NO_TERMS, Terms

DETAILS_BYTES, COPIER_BYTES, TERMS_BYTES = 256, 440, 200
"""Upper estimates of what an entry's details take beside its tags, what makes copies beside its payload, and what the
loader has said beside its version."""


@dataclass(slots=True, eq=False, kw_only=True)
class Details:
    """What few entries need: everything that makes a hit take the slow path, and the tags."""

    absent: bool = False
    """Nothing is in L2 under this key; only said for hierarchical searches, and for D at most."""
    not_found: bool = False
    """The source says that there is nothing."""
    soft_until_s: float = INF
    fallback_until_s: float = NEVER
    """Until when an expired value may be the fallback for a failing source."""
    tags: Sequence[str] = ()
    version: bytes = b""
    decode: Callable[[], object] | None = None
    """Makes a copy of the value for each caller, where the policy wants that."""
    terms: Terms = NO_TERMS
    """What the loader has said."""
    created_s: float = NEVER
    """When its load began, or its write was sent, on this node's clock."""

    def soft_version(self, now_s: float) -> bytes:
        """The version, where the soft expiry is over, so that it is to be refreshed; else b""."""
        return self.version if self.soft_until_s <= now_s else b""

    def size_bytes(self, record: Record) -> int:
        """What this takes, with all that it holds of the record that it was made from."""
        size = DETAILS_BYTES + sum(map(getsizeof, self.tags))
        if self.terms is not NO_TERMS:
            size += TERMS_BYTES + getsizeof(self.terms.version)
        return size if self.decode is None else size + COPIER_BYTES + len(record.payload)


ABSENT = Details(absent=True)


def details(entry: Entry) -> Details | None:
    """What an entry has beyond the ordinary. One that has nothing has a number there: see `created_s`."""
    extra = entry.extra
    return extra if type(extra) is Details else None


def created_s(entry: Entry) -> float:
    """When an entry's load began, or its write was sent, on this node's clock, to a second; -infinity where that is
    unknown."""
    extra = entry.extra
    if type(extra) is Details:
        return extra.created_s
    return extra if type(extra) is float else NEVER
