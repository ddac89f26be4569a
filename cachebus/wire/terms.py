"""What a loader has said of its value beside its tags: in the open part of the record, so that every node heeds it.

A msgpack map, of which each entry is left out where nothing was said:

- `version`: text, the source's own
- `ttl_ms` (0: for ever), `soft_ttl_ms`, `l1_ttl_ms`: its lifetimes, which a value that is "not modified" gets anew. The
  first may be that of a call which has loaded it
- `late_tags`: how many of the record's last tags the loader has given; all others are those of the callers
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec


class Terms(NamedTuple):
    """What a loader has said; times are in seconds."""

    version: str = ""
    ttl_s: float | None = None
    soft_ttl_s: float | None = None
    l1_ttl_s: float | None = None
    late_tags: int = 0

    def encoded(self) -> bytes:
        """The map; b"" where nothing was said."""
        if self == NO_TERMS:
            return b""
        said = {
            "version": self.version,
            "ttl_ms": _in_ms(self.ttl_s),
            "soft_ttl_ms": _in_ms(self.soft_ttl_s),
            "l1_ttl_ms": _in_ms(self.l1_ttl_s),
            "late_tags": self.late_tags,
        }
        return msgspec.msgpack.encode(
            {name: one for name, one in said.items() if one or (one == 0 and name == "ttl_ms")}
        )

    def split(self, tags: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """A record's tags: those of its callers, and those that its loader has given."""
        at = max(0, len(tags) - self.late_tags)
        return tags[:at], tags[at:]


NO_TERMS: Final = Terms()


def terms_of(more: bytes) -> Terms:
    """What a record's open part says; nothing of what can't be understood."""
    if not more:
        return NO_TERMS
    try:
        said: Any = msgspec.msgpack.decode(more)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NO_TERMS
    if not isinstance(said, dict):
        return NO_TERMS
    version, late = said.get("version"), said.get("late_tags")
    return Terms(
        version if isinstance(version, str) else "",
        _in_s(said.get("ttl_ms"), or_ever=True),
        _in_s(said.get("soft_ttl_ms")),
        _in_s(said.get("l1_ttl_ms")),
        late if type(late) is int and 0 < late <= 255 else 0,
    )


def _in_ms(time_s: float | None) -> int | None:
    if time_s is None:
        return None
    return 0 if time_s == math.inf else max(1, int(time_s * 1000))


def _in_s(time_ms: object, *, or_ever: bool = False) -> float | None:
    if type(time_ms) is not int or time_ms < (0 if or_ever else 1):
        return None
    return time_ms / 1000 if time_ms else math.inf
