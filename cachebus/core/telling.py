"""What hooks are told, made of the bare facts that were noted where something happened; and when leases lapse.

Names of keys and scopes are taken apart here, when they are told, and not where they are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cachebus.core.answers import NEVER
from cachebus.core.shard import Shard
from cachebus.keys.key import GIVEN, parts_of
from cachebus.observe.hook_events import (
    DegradedEvent,
    EvictedEvent,
    FlushedEvent,
    HookEvent,
    InvalidatedEvent,
    KeyIds,
    LeaseLapsedEvent,
    LoadedEvent,
    LoadFailedEvent,
    ScopeIds,
    StaleServedEvent,
)
from cachebus.observe.hooks import Hooks, Untold
from cachebus.wire.event import Event

_CONTEXTS: Final = ("agent_id", "conversation_id", "collection_id")
_SCOPES: Final[dict[str, tuple[str, ...]]] = {
    "N": (),
    "Y": ("data_type",),
    "T": ("tenant_id",),
    "D": ("tenant_id", "data_type"),
    "I": ("tenant_id", "data_type", "resource_id"),
    "G": ("tenant_id", "tag"),
    **{f"T{shape}": ("tenant_id", name) for shape, name in zip("AVC", _CONTEXTS, strict=True)},
    **{f"D{shape}": ("tenant_id", "data_type", name) for shape, name in zip("AVC", _CONTEXTS, strict=True)},
}
"""By a scope's shape: what its name has behind it."""


def key_ids(l1: str) -> KeyIds:
    """The ids in a key's L1 name, of whatever may stand in an event."""
    try:
        tenant, data_type, resource_id, contexts = parts_of(l1)
        agent, conversation, collection = contexts
    except ValueError:
        return KeyIds("", l1)
    return KeyIds(data_type, resource_id, tenant or None, agent, conversation, collection)


def scope_ids(name: str) -> ScopeIds:
    """The ids in a scope's name, whose shape is known."""
    shape, *given = name.split(GIVEN)
    return ScopeIds(**{field: part or None for field, part in zip(_SCOPES[shape], given, strict=True)})


def tell_invalidated(hooks: Hooks, index: int, event: Event) -> None:
    """An event is applied: of each write in it somebody wants to be told."""
    for part in event.parts:
        weight = 1 + len(part.keys) + len(part.scopes)
        hooks.tell("invalidated", index, event.epoch, event.seq, part, weight=weight)


class LeaseLapses:
    """Tells of each lease that has run out, once: as soon as somebody looks."""

    def __init__(self, shards: Sequence[Shard], hooks: Hooks) -> None:
        self._shards, self._hooks = shards, hooks
        self._told = [NEVER] * len(shards)
        """By shard: the lease that was told of last, by its end."""

    def look(self, index: int, now_s: float) -> None:
        """Tell of the shard's lease, if it has run out. One that was given up, as at a flush, has not."""
        until_s = self._shards[index].valid_until_s
        if self._hooks.lease_lapsed and NEVER < until_s <= now_s and until_s != self._told[index]:
            self._told[index] = until_s
            self._hooks.tell("lease_lapsed", index, until_s)

    def next_s(self, now_s: float) -> float:
        """When the next one will run out that is live now, unless it is renewed; infinite where none is."""
        return min((s.valid_until_s for s in self._shards if s.valid_until_s > now_s), default=float("inf"))


def made(untold: Untold) -> HookEvent:
    """The event of these facts."""
    event: HookEvent = _MAKERS[untold.name](untold.at_s, *untold.facts)
    return event


def _invalidated(at_s: float, index: int, epoch: bytes, seq: int, part: Any) -> InvalidatedEvent:
    keys, scopes = tuple(map(key_ids, part.keys)), tuple(map(scope_ids, part.scopes))
    return InvalidatedEvent(at_s, index, epoch.decode(), seq, keys, scopes, part.origin, part.reason)


def _of_key(kind: Any) -> Any:
    def make(at_s: float, l1: str, *facts: Any) -> Any:
        return kind(at_s, key_ids(l1), *facts)

    return make


_MAKERS: Final[dict[str, Any]] = {
    "invalidated": _invalidated,
    "loaded": _of_key(LoadedEvent),
    "load_failed": _of_key(LoadFailedEvent),
    "stale_served": _of_key(StaleServedEvent),
    "lease_lapsed": LeaseLapsedEvent,
    "flushed": FlushedEvent,
    "evicted": _of_key(EvictedEvent),
    "degraded": DegradedEvent,
}
