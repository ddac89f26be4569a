"""How long a value may live, and how many tags it may have: what a record has room for."""

from __future__ import annotations

import math

TTL_PERMANENT = math.inf
"""No expiry."""
TTL_MAX_S = 10.0**10
"""Three centuries. More is refused, since in ms it would not fit the records; what shall never expire says so."""
TTL_MIN_S = 0.001
"""Records count in ms."""
TAGS_MAX = 255
"""A record counts its tags in one byte."""


def check_ttl(ttl: object, name: str = "ttl") -> float:
    """A time to live in seconds; `ValueError` for what is not a number above 0 (`TTL_PERMANENT` is one)."""
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not ttl > 0:
        raise ValueError(f"{name} must be a number of seconds above 0, or TTL_PERMANENT, not {ttl!r}")
    if ttl < TTL_MIN_S:
        raise ValueError(f"{name} must be at least {TTL_MIN_S:g} s: records count in ms")
    if ttl > TTL_MAX_S and ttl != math.inf:
        raise ValueError(f"{name} must be at most {TTL_MAX_S:g} s; what shall never expire has TTL_PERMANENT")
    return float(ttl)
