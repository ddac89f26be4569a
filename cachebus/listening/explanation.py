"""What an explanation is: times are those of L2's clock, everything is said twice, as data and in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any


def moment(server_s: float) -> datetime:
    """A time of L2's clock."""
    return datetime.fromtimestamp(server_s, UTC)


def clock_time(at: datetime) -> str:
    """A time of day, to the ms."""
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03}Z"


def day_time(at: datetime) -> str:
    """A time of another day, it may be: to the second, which is enough to say from when something is known."""
    return f"{at:%Y-%m-%d %H:%M:%S}Z"


def seconds(span_s: float) -> str:
    """A span for people."""
    return f"{span_s:.1f} s" if span_s < 600 else f"{span_s / 60:,.0f} min"


@dataclass(frozen=True, slots=True)
class StoredValue:
    """What L2 has under the key."""

    state: str
    """"valid"; or why a read gets nothing of it: "none", "not_ours", "damaged", "other_epoch", "forgotten",
    "invalidated", "expired". "not_found": the source has said that there is nothing."""
    says: str
    """The same in words."""
    created_at: datetime | None = None
    """When its load began at the earliest, or its write was sent."""
    soft_expiry: datetime | None = None
    """From when a read has it loaded anew, and gets it all the same."""
    expires_at: datetime | None = None
    """None: never, or there is nothing."""
    cut_short: bool = False
    """Whether it expires sooner than its time to live says, as the epoch had just begun when it was stored."""
    epoch: str = ""
    seq: int | None = None
    version: str = ""
    size_bytes: int = 0
    tags: tuple[str, ...] = ()
    written_by: str = ""
    """Who wrote it, where the log still has that write. "": a load, of which L2 does not note whose it was, or it is
    not known."""


@dataclass(frozen=True, slots=True)
class TouchingEvent:
    """One event of the log that replaced what was there before."""

    seq: int
    at: datetime
    what: str
    """What it named, in words."""
    origin: str
    reason: str
    trace: str


@dataclass(frozen=True, slots=True)
class KnownSince:
    """Since when the log of a shard can tell: of what was before, nobody can say that it did not happen."""

    epoch_began: datetime | None = None
    """When the shard's history began anew. None: nothing was before, or it is not known."""
    log_begins: datetime | None = None
    """When the oldest event was published that the log has; None where it has none, or that one is damaged."""
    log_begins_seq: int | None = None

    def __str__(self) -> str:
        began = "" if self.epoch_began is None else f"; this epoch began at {day_time(self.epoch_began)}"
        if self.log_begins_seq is None:
            return f"the log is empty{began}; what was before is not told"
        at = "" if self.log_begins is None else f" of {day_time(self.log_begins)}"
        return (
            f"the log goes back to seq {self.log_begins_seq}{at}{began}; what was before is not told, and the log "
            "keeps the newest events only (log_max_len, log_max_bytes)"
        )


@dataclass(frozen=True, slots=True)
class StandingWrite:
    """A write guard that stands on the key: nothing is cached until it goes."""

    on: str
    """What it stands on, in words."""
    until: datetime
    """When it goes at the latest."""
    began_at: datetime | None = None
    """By the log: the last event that named the same. None where the log has none."""
    origin: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """One node, as it says itself, or as far as its row in L2 tells."""

    node: str
    answered: bool
    says: str
    """In words."""
    silent_s: float | None = None
    """How long ago it last asked L2 something; None where it has no row."""
    applied: int = 0
    """How far it has applied the events of the present epoch."""
    lease_until: datetime | None = None
    """When its lease ends, unless it is renewed: at most. None: it has none."""
    holds: str = ""
    """"value", "not_found", "absent" where L2 had nothing; "" for nothing, or unknown."""
    seq: int | None = None
    version: str = ""
    serves: bool = False
    """Whether a read on it gets that now; of a silent one: may get."""
    replaced: bool = False
    """Whether what it serves, or may serve, was replaced."""
    until: datetime | None = None
    """Until when it may serve that at most; None where it serves nothing, or the value never expires."""
    hit_path: bool = False
    """Whether a read takes the fast path."""
    why_not: str = ""
    """Why it serves nothing of what it holds: "replaced", "expired", "no_lease"."""
    fallback: bool = False
    """Whether it gives what it holds, though it has expired, while the source fails."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `cache.explain` gives. `str()` of it is what `cachebus explain` prints."""

    verdict: str
    """What a read gets, and why, in a sentence. Its words may change."""
    case: str
    """Which verdict it is: "replaced_is_served", "may_be_served", "guarded", "waiting", "not_replaced", "only_in_l1",
    "nothing"."""
    cached: bool
    """Whether L2 has something valid, or a node that answered serves something, or keeps it as a fallback."""
    key: str
    """The key's name in L2."""
    shard: int
    epoch: str
    seq: int
    """How far the shard's history is."""
    at: datetime
    """When it was looked, by L2's clock."""
    stored: StoredValue
    events: tuple[TouchingEvent, ...]
    """The last events of the log that touched the key, the newest first."""
    events_read: int
    """How many of the log's newest events were looked at."""
    since: KnownSince
    guards: tuple[StandingWrite, ...]
    nodes: tuple[Holder, ...]
    """Those that answered first."""
    notes: tuple[str, ...] = ()
    """What could not be found out, and what else is worth knowing."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: times as text, ISO 8601."""
        told: dict[str, Any] = json.loads(json.dumps(asdict(self), default=datetime.isoformat))
        return told

    def __str__(self) -> str:
        lines = [self.verdict, "", f"L2     {self.stored.says}"]
        lines += [f"guard  {_guard(guard)}" for guard in self.guards]
        lines += [f"event  {_event(event)}" for event in self.events]
        if not self.events:
            lines.append(f"event  none of the last {self.events_read:,} in the log touched it")
        lines.append(f"since  {self.since}")
        lines += [f"node   {holder.says}" for holder in self.nodes]
        lines += [f"note   {note}" for note in self.notes]
        return "\n".join(lines)


def _guard(guard: StandingWrite) -> str:
    began = (
        "" if guard.began_at is None else f", put up at {clock_time(guard.began_at)}{by(guard.origin, guard.reason)}"
    )
    return f"on {guard.on}, until {clock_time(guard.until)} at the latest{began}"


def _event(event: TouchingEvent) -> str:
    return f"seq {event.seq} at {clock_time(event.at)}{by(event.origin, event.reason)}: {event.what}"


def by(origin: str, reason: str) -> str:
    """Who it was, and why, behind what has been said."""
    return f", by {origin or 'a producer'}" + (f" ({reason})" if reason else "")
