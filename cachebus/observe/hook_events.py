"""What hooks are told: frozen data, without values. Which of them means what exactly is said on the page about hooks.

`at_s` is when it happened, in seconds on the cache's monotonic clock, as in `cache.on_applied`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from cachebus.base.choices import Level, Origin

HookName = Literal[
    "invalidated", "loaded", "load_failed", "stale_served", "lease_lapsed", "flushed", "evicted", "degraded"
]


@dataclass(frozen=True, slots=True)
class KeyIds:
    """The ids of one value."""

    data_type: str
    resource_id: str
    tenant_id: str | None = None
    """None for the type `system`, where it goes without a tenant."""
    agent_id: str | None = None
    conversation_id: str | None = None
    collection_id: str | None = None

    @property
    def arguments(self) -> dict[str, str]:
        """Those that are given, as the verbs of a cache take them: `await cache.get(**event.key.arguments)`."""
        return _given(self)


@dataclass(frozen=True, slots=True)
class ScopeIds:
    """What is addressed besides single values: all that has these ids. Without any it is everything in the shard."""

    tenant_id: str | None = None
    """None is all tenants of the shard."""
    data_type: str | None = None
    resource_id: str | None = None
    """This id in every context."""
    agent_id: str | None = None
    conversation_id: str | None = None
    collection_id: str | None = None
    tag: str | None = None


def _given(ids: KeyIds | ScopeIds) -> dict[str, str]:
    known = ((field.name, getattr(ids, field.name)) for field in fields(ids))
    return {name: value for name, value in known if value is not None}


@dataclass(frozen=True, slots=True)
class InvalidatedEvent:
    """This node has applied a write: nothing that it replaces is believed here any more."""

    at_s: float
    shard: int
    epoch: str
    seq: int
    """With `epoch` the write's position, as in a receipt."""
    keys: tuple[KeyIds, ...]
    scopes: tuple[ScopeIds, ...]
    origin: str
    """The node, producer or worker that made it; "" where nobody said."""
    reason: str
    """What its caller gave as `reason`; "" is none."""


@dataclass(frozen=True, slots=True)
class LoadedEvent:
    """The source has answered a load of this node, and what it gave is where it may be kept."""

    at_s: float
    key: KeyIds
    took_s: float
    """What the source took, with all attempts."""
    found: bool
    """False: the source has nothing."""
    source: Origin
    """Which function gave it; "database" where there is one."""
    refresh: bool
    """Whether it was loaded ahead of its expiry, for nobody who waited."""
    stored: bool
    """Whether L2 has it now. Not so if something replaced it meanwhile, if a write guard stands, if L2 is out of reach,
    or if it can't be encoded."""


@dataclass(frozen=True, slots=True)
class LoadFailedEvent:
    """A source has failed a load of this node, after all attempts."""

    at_s: float
    key: KeyIds
    took_s: float
    error: str
    """The error's class: its text may hold a password."""


@dataclass(frozen=True, slots=True)
class StaleServedEvent:
    """A caller was given an expired value, as the source fails, is slow, or cools down."""

    at_s: float
    key: KeyIds
    level: Level | None
    """Where the value was."""


@dataclass(frozen=True, slots=True)
class LeaseLapsedEvent:
    """This node's lease of a shard has run out. Until a probe is answered, its memory of the shard serves nothing that
    was read or loaded longer ago than the staleness bound."""

    at_s: float
    shard: int
    lapsed_at_s: float
    """When it ran out, on the same clock."""


@dataclass(frozen=True, slots=True)
class FlushedEvent:
    """All that this node held of a shard is void."""

    at_s: float
    shard: int
    cause: str
    """As in `Stats.flushes`: "epoch", "gap", "suspended", "unknown", "corrupt"."""


@dataclass(frozen=True, slots=True)
class EvictedEvent:
    """A value has left L1 for want of room. L2 may have it still."""

    at_s: float
    key: KeyIds
    size_bytes: int
    """What it was taken to need in L1."""


@dataclass(frozen=True, slots=True)
class DegradedEvent:
    """L2 or the bus can't be reached any more, or can again."""

    at_s: float
    part: Literal["L2", "bus"]
    degraded: bool
    """True as the first shard is out of reach, False as the last one is back."""
    why: str
    """What was wrong with the first one; "" where it is back."""


HookEvent = (
    InvalidatedEvent
    | LoadedEvent
    | LoadFailedEvent
    | StaleServedEvent
    | LeaseLapsedEvent
    | FlushedEvent
    | EvictedEvent
    | DegradedEvent
)
"""Any of them."""
