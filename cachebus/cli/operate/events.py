"""Events in words, for people and for programs; and which of them touch what is asked for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cachebus.keys.key import ABSENT, GIVEN
from cachebus.wire import event as events

_control = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Filter:
    """Which writes are asked for. What is None, or empty, excludes none."""

    data_type: str | None = None
    resource_id: str | None = None
    tenant: str | None = None
    tags: tuple[str, ...] = ()
    node: str | None = None
    """The beginning of who made it."""

    def fits(self, part: events.WritePart) -> bool:
        """Whether a write may have replaced something that is asked for."""
        return (self.node is None or part.origin.startswith(self.node)) and (
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


def line_of(shard: int, message: bytes, wanted: Filter, *, as_json: bool) -> str:
    """An event for people or programs; "" for one that is not asked for, and for a hint to those who wait."""
    if message.startswith(events.WAKE):
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
                "parts": [*map(_told, parts)],
            }
        )
    said = [f"{shown(part.origin) or 'a producer'}: {_what(part)}" for part in parts]
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}Z  shard {shard}  {event.seq:>8}  {'; '.join(said)}"


def shown(name: str) -> str:
    """A name whose parts are joined by control characters, fit for a terminal: a stroke between its parts."""
    return _control.sub("?", name.rstrip(ABSENT).replace(GIVEN, " | ").replace(ABSENT, " | -"))


def _told(part: events.WritePart) -> dict[str, Any]:
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


_CALLED = {"A": "agent", "V": "conversation", "C": "collection"}


def scope_in_words(name: str) -> str:
    """A scope or tag in words."""
    shape, *parts = (_control.sub("?", part) for part in name.split(GIVEN))
    match shape[0]:
        case "N":
            return "everything"
        case "Y":
            return f"all {parts[0]} of all tenants"
        case "G":
            return f"tag {parts[1]} of {parts[0]}"
        case "I":
            return f"{parts[0]} | {parts[1]} | {parts[2]} in every context"
    within = f" in {_CALLED[shape[1]]} {parts[-1]}" if len(shape) > 1 else ""
    return (f"all {parts[1]} of {parts[0]}" if shape[0] == "D" else f"all of {parts[0]}") + within
