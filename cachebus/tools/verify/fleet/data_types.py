"""The data types of a run: their policies, and what their values look like, so that one which is not whole is seen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from cachebus import Policy

TTL_S: Final = 600.0
"""Whatever becomes of a run, nothing that it stored outlives it by more."""
QUICK_TTL_S: Final = 3.0
FAIL_SAFE_S: Final = 5.0
THROTTLE_S: Final = 1.0
NEGATIVE_S: Final = 1.0
LOAD_S: Final = 1.5
"""For so long a source that hangs is waited for."""
PADDING: Final = "x" * 200
BULK: Final = (10, 1_000, 30_000, 1_000_000)
"""Bytes."""
ABSENT_EVERY: Final = 3
"""An item that may be absent is so in each version that this divides."""
MUTATION: Final = "a caller's own"
"""What every caller puts into a value that is said to be its own."""
_DAY: Final = datetime(2020, 1, 1, tzinfo=UTC)


class Profile(BaseModel):
    """What a model's values are."""

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
"""Each type takes another way through the library: plain, tagged, with contexts, expiring and refreshed, a model,
without L1, absent at times, claimed by `add`, copied and compressed, from bytes to a megabyte, odd, only
written behind guards, without tenant."""

MAX_AGE_S: Final = {
    name: (policy.ttl_s or TTL_S) + (policy.fail_safe_s or 0.0)
    for name, policy in POLICIES.items()
    if policy.ttl_s != TTL_S
}
"""For how long a loaded value of these types may be served at most."""
SOFT_S: Final = {
    name: policy.soft_ttl_s for name, policy in POLICIES.items() if policy.soft_ttl_s is not None and policy.l1
}
"""For how long one node does not load a value of these types again."""
REST_S: Final = {name: policy.fail_safe_throttle_s for name, policy in POLICIES.items() if policy.retries == 0}
"""For how long a source of these types that has failed is left alone, if something can be served."""
COPIED: Final = frozenset(name for name, policy in POLICIES.items() if policy.copy_values)
"""Types of which each caller gets a value of its own."""


def is_absent(data_type: str, version: int) -> bool:
    """Whether an item is absent from the source in this version."""
    return data_type in ("maybe", "claim") and version % ABSENT_EVERY == 0


def last_absent(version: int) -> int:
    """The newest version up to this one in which such an item is absent; 0 for none."""
    return version - version % ABSENT_EVERY


def make_value(data_type: str, number: int, version: int, tenant: str) -> Any:
    """A value: whose it is, and which version."""
    if data_type == "profile":
        since = _DAY + timedelta(seconds=version)
        return Profile(number=number, version=version, tenant=tenant, since=since, places=(number, version))
    value: list[Any] = [number, version, tenant]
    if data_type == "blob":
        value.append(PADDING)
    elif data_type == "bulk":
        value.append(chr(97 + version % 26) * BULK[number % len(BULK)])
    return value


def loaded(data_type: str, value: Any) -> Any:
    """What a loader gives for it: of some types in another form than any read gives it, from the first on."""
    return tuple(value) if data_type in ("answer", "remote") and value is not None else value


def parse(value: Any) -> tuple[int, int, str]:
    """Number, version and tenant of a value."""
    if isinstance(value, Profile):
        return value.number, value.version, value.tenant
    number, version, tenant = value[:3]
    return number, version, tenant


def is_intact(data_type: str, value: Any) -> bool:
    """Whether it is, to the last part, what was loaded or stored."""
    expected = make_value(data_type, *parse(value))
    return type(value) is type(expected) and value == expected


def mutate(value: Any) -> None:
    """What a caller may do with a value of its own."""
    (value.notes if isinstance(value, Profile) else value).append(MUTATION)


def is_mutated(value: Any) -> bool:
    """Whether a caller has done so before."""
    return MUTATION in (value.notes if isinstance(value, Profile) else value)
