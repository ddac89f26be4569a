"""The data types of a run: their policies, and their values, which tell whose they are and whether they are intact."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from cachebus import Policy

TTL_S: Final = 600.0
"""Nothing that a run has stored outlives it by more, however the run ends."""
QUICK_TTL_S: Final = 3.0
FAIL_SAFE_S: Final = 5.0
THROTTLE_S: Final = 1.0
NEGATIVE_S: Final = 1.0
LOAD_S: Final = 1.5
"""How long a caller waits for a source that hangs."""
PADDING: Final = "x" * 200
BULK: Final = (10, 1_000, 30_000, 1_000_000)
"""Sizes of values, in bytes."""
ABSENT_EVERY: Final = 3
"""An item that may be absent is absent in every version that this divides."""
MUTATION: Final = "a caller's own"
"""What every caller puts into a value of which it gets a copy."""
_DAY: Final = datetime(2020, 1, 1, tzinfo=UTC)


class Profile(BaseModel):
    """The values of the type with a model."""

    number: int
    version: int
    tenant: str
    since: datetime
    places: tuple[int, ...]
    notes: list[str] = []


_POLICIES: Final[dict[str, dict[str, Any]]] = {
    "config": {},
    "page": {},
    "answer": {},
    "quick": {
        "ttl_s": QUICK_TTL_S,
        "soft_ttl_s": 1.0,
        "fail_safe_s": FAIL_SAFE_S,
        "fail_safe_throttle_s": THROTTLE_S,
        "ttl_jitter": 0.2,
        "retries": 0,
    },
    "profile": {
        "ttl_s": 1.0,
        "fail_safe_s": FAIL_SAFE_S,
        "fail_safe_throttle_s": THROTTLE_S,
        "load_soft_timeout_s": 0.05,
        "model": Profile,
        "copy": True,
        "retries": 0,
    },
    "remote": {"l1": False, "soft_ttl_s": 0.5},
    "maybe": {"ttl_s": QUICK_TTL_S, "negative_ttl_s": NEGATIVE_S, "fail_safe_s": TTL_S},
    "claim": {"negative_ttl_s": TTL_S},
    "blob": {"compress_over_bytes": 100, "copy": True},
    "bulk": {"l1_ttl_s": 2.0, "compress_over_bytes": 500_000},
    "odd": {
        "ttl_s": 1.0,
        "soft_ttl_s": 0.5,
        "fail_safe_s": FAIL_SAFE_S,
        "fail_safe_throttle_s": THROTTLE_S,
        "retries": 0,
    },
    "deed": {},
    "system": {},
}
POLICIES: Final = {
    name: Policy(**({"ttl_s": TTL_S, "load_timeout_s": LOAD_S} | way)) for name, way in _POLICIES.items()
}
"""Each type takes another path through the library: plain, tagged, with contexts, expiring and refreshed, with a model,
without L1, absent at times, claimed by `add`, copied and compressed, of all sizes up to a megabyte, with loaders that
misbehave ("odd"), written behind guards only ("deed"), without a tenant."""

MAX_AGE_S: Final = {
    name: (policy.ttl_s or TTL_S) + (policy.fail_safe_s or 0.0)
    for name, policy in POLICIES.items()
    if policy.ttl_s != TTL_S
}
"""How long a loaded value may be served at most, for types that expire during a run."""
SOFT_S: Final = {
    name: policy.soft_ttl_s for name, policy in POLICIES.items() if policy.soft_ttl_s is not None and policy.l1
}
"""How long one node does not load a value again, for types with a soft expiry."""
REST_S: Final = {name: policy.fail_safe_throttle_s for name, policy in POLICIES.items() if policy.retries == 0}
"""How long a source that has failed is left alone if something can be served, for types without retries."""
COPIED: Final = frozenset(name for name, policy in POLICIES.items() if policy.copy_values)
"""Types of which each caller gets a copy."""


def is_absent(data_type: str, version: int) -> bool:
    """Whether an item is absent from the source in this version."""
    return data_type in ("maybe", "claim") and version % ABSENT_EVERY == 0


def last_absent(version: int) -> int:
    """The newest version up to this one in which an item of such a type is absent; 0 for none."""
    return version - version % ABSENT_EVERY


def make_value(data_type: str, number: int, version: int, tenant: str) -> Any:
    """The value of an item in a version. It names both, and the tenant."""
    if data_type == "profile":
        since = _DAY + timedelta(seconds=version)
        return Profile(number=number, version=version, tenant=tenant, since=since, places=(number, version))
    value: list[Any] = [number, version, tenant]
    if data_type == "blob":
        value.append(PADDING)
    elif data_type == "bulk":
        value.append(chr(97 + version % 26) * BULK[number % len(BULK)])
    return value


def as_loaded(data_type: str, value: Any) -> Any:
    """The value as a loader returns it. For some types that is a tuple, of which every read must give a list."""
    return tuple(value) if data_type in ("answer", "remote") and value is not None else value


def parse(value: Any) -> tuple[int, int, str]:
    """Number, version and tenant of a value."""
    if isinstance(value, Profile):
        return value.number, value.version, value.tenant
    number, version, tenant = value[:3]
    return number, version, tenant


def is_intact(data_type: str, value: Any) -> bool:
    """Whether the value is, in every part, what was loaded or stored."""
    expected = make_value(data_type, *parse(value))
    return type(value) is type(expected) and value == expected


def mutate(value: Any) -> None:
    """Change a value, as a caller may who has got a copy."""
    (value.notes if isinstance(value, Profile) else value).append(MUTATION)


def is_mutated(value: Any) -> bool:
    """Whether a caller has changed this value before."""
    return MUTATION in (value.notes if isinstance(value, Profile) else value)
