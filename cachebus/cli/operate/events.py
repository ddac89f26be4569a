"""Events in words, for people and for programs; and which of them touch what is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from cachebus.base.ids import check_part
from cachebus.errors import ConfigError
from cachebus.keys.key import ABSENT, GIVEN
from cachebus.keys.words import scope_in_words, shown
from cachebus.wire import event as events
from cachebus.wire.heat import HOT_NAMES, HOT_QUESTION
from cachebus.wire.inquiry import ANSWER, QUESTION


@dataclass(frozen=True)
class Filter:
    """Which writes are asked for. What is None, or empty, excludes none."""

    data_type: str | None = None
    resource_id: str | None = None
    tenant: str | None = None
    tags: tuple[str, ...] = ()
    node: str | None = None
    """The beginning of who made it."""

    def checked(self) -> Self:
        """Itself; `InvalidKey`, `ConfigError` where no write can fit, or each does as nothing was said."""
        names = {"data_type": self.data_type, "resource_id": self.resource_id, "tenant_id": self.tenant}
        for name, part in (*names.items(), *(("tag", tag) for tag in self.tags)):
            if part is not None:
                check_part(name, part)
        if self.node == "":
            raise ConfigError("--node is empty")
        return self

    def fits(self, part: events.WritePart) -> bool:
        """Whether a write may have replaced something that is asked for."""
        return (self.node is None or self.node in part.origin) and (
            any(map(self._names, part.keys)) or any(map(self._holds, part.scopes))
        )

    def _names(self, l1: str) -> bool:
        """Whether a key is asked for, by its L1 name."""
        tenant, data_type, rest = l1.split(GIVEN, 2)
        named = rest.replace(ABSENT, GIVEN).partition(GIVEN)[0]
        return not self.tags and all(
            asked in (None, given)
            for asked, given in ((self.tenant, tenant), (self.data_type, data_type), (self.resource_id, named))
        )

    def _holds(self, scope: str) -> bool:
        """Whether a scope or tag holds something that is asked for."""
        shape, *parts = scope.split(GIVEN)
        if shape == "G":
            return self.tenant in (None, parts[0]) and (not self.tags or parts[1] in self.tags)
        if self.tags:
            return False
        if shape == "Y":
            return self.data_type in (None, parts[0])
        fields = zip((self.tenant, self.data_type, self.resource_id), _placed(shape, parts), strict=True)
        return all(asked is None or given in (None, asked) for asked, given in fields)


def _placed(shape: str, parts: list[str]) -> tuple[str | None, str | None, str | None]:
    """Tenant, data type and id of a scope; None for any."""
    tenant = parts[0] if parts else None
    data_type = parts[1] if shape[0] in "DI" else None
    return tenant, data_type, parts[2] if shape == "I" else None


def keys_named(message: bytes) -> set[tuple[str, str]]:
    """Tenant and data type of each key that an event names; none of what can't be read."""
    try:
        keys = events.decode(message).keys
    except events.CorruptEvent:
        return set()
    return {(parts[0], parts[1]) for parts in (key.split(GIVEN, 2) for key in keys) if len(parts) > 2}


def line_of(shard: int, message: bytes, wanted: Filter, *, as_json: bool) -> str:
    """An event for people or programs; "" for one that is not asked for, and for what is none: a hint to those who
    wait, or a question to nodes and its answers."""
    if message.startswith((events.WAKE, QUESTION, ANSWER, HOT_QUESTION, HOT_NAMES)):
        return ""
    try:
        event = events.decode(message)
    except events.CorruptEvent as error:
        return json.dumps({"shard": shard, "corrupt": str(error)}) if as_json else f"shard {shard}  corrupt: {error}"
    parts = [part for part in event.parts if wanted.fits(part)]
    if event.parts and not parts:
        return ""
    at = datetime.fromtimestamp(event.published_us / 1e6, UTC)
    if as_json:
        return json.dumps(
            {
                "at": at.isoformat(),
                "shard": shard,
                "epoch": event.epoch.decode(errors="replace"),
                "seq": event.seq,
                "published_us": event.published_us,
                "parts": [*map(_as_dict, parts)],
            }
        )
    said = [f"{shown(part.origin) or 'a producer'}: {_what(part)}" for part in parts]
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}Z  shard {shard}  {event.seq:>8}  {'; '.join(said)}"


def _as_dict(part: events.WritePart) -> dict[str, Any]:
    return {
        "keys": [*map(_parts, part.keys)],
        "scopes": [*map(_parts, part.scopes)],
        "origin": part.origin,
        "reason": part.reason,
        "trace": part.trace,
    }


def _parts(name: str) -> list[str | None]:
    """The parts of a key's, scope's or tag's name; None for a context that is not given."""
    return [None if part == "\0" else part for part in name.replace(ABSENT, f"{GIVEN}\0").split(GIVEN)]


def _what(part: events.WritePart) -> str:
    what = ", ".join([*map(shown, part.keys), *map(scope_in_words, part.scopes)]) or "nothing"
    return what + (f" ({shown(part.reason)})" if part.reason else "")
