"""The last events of a shard's log that touched a key, and what they say of who stored it and who guards it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from cachebus.core.ports import KeyFacts, LogEntry, Store
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key, guard_name
from cachebus.keys.words import scope_in_words, shown
from cachebus.listening.explanation import KnownSince, StandingWrite, TouchingEvent, moment
from cachebus.wire import event as events
from cachebus.wire.record import Record

TOLD_MAX: Final = 5
READ_MAX: Final = 20_000
"""So many of the newest events are looked at, unless `TOLD_MAX` are found before."""
FIRST: Final = 128
AT_ONCE: Final = 1_000


class Touch(NamedTuple):
    """One write of an event that names the key, or a scope or tag that it lies in."""

    seq: int
    published_us: int
    part: events.WritePart
    names: tuple[str, ...]
    """Of the scopes and tags that the key lies in, those that it names."""
    itself: str
    """The key's L1 name, where it names the key itself; else ""."""


class KeyHistory(NamedTuple):
    """What the log has of a key."""

    touches: Sequence[Touch] = ()
    """The newest first."""
    read: int = 0
    """How many events were looked at."""
    trouble: str = ""
    since: KnownSince = KnownSince()

    @property
    def events(self) -> tuple[TouchingEvent, ...]:
        """For people."""
        return tuple(map(_event_of, self.touches))

    def at_us(self, seq: int) -> int | None:
        """When the event of this seq was published; None where the log no longer has it."""
        return next((touch.published_us for touch in self.touches if touch.seq == seq), None)


async def history(store: Store, key: Key, facts: KeyFacts, tags: Collection[str]) -> KeyHistory:
    """What the log of the key's shard has, newest first, and what came since it was looked at: in portions, since an
    event may be large."""
    names = frozenset((*key.scopes, *tags))
    touches: list[Touch] = []
    newest, size, read = facts.seq, FIRST, 0
    try:
        for entry in reversed(await store.log(key.shard, newest, AT_ONCE)):
            touches += _touches(entry, key, facts.epoch, names)
            read += 1
        while newest > 0 and read < READ_MAX and len(touches) < TOLD_MAX:
            after = max(0, newest - size)
            entries = [one for one in await store.log(key.shard, after, newest - after) if after < one.seq <= newest]
            for entry in reversed(entries):
                touches += _touches(entry, key, facts.epoch, names)
            read += len(entries)
            if not entries:
                break  # what is older was trimmed
            newest, size = after, AT_ONCE
        since = known_since(facts.born_us, await store.log(key.shard, 0, 1))
    except L2Unavailable as error:
        return KeyHistory(touches[:TOLD_MAX], read, str(error), known_since(facts.born_us, ()))
    return KeyHistory(touches[:TOLD_MAX], read, "", since)


def known_since(born_us: int, oldest: Sequence[LogEntry]) -> KnownSince:
    """By when the epoch began (0: not known), and the oldest entry of the log, if there is any."""
    began = moment(born_us / 1e6) if born_us else None
    for entry in oldest:
        with suppress(events.CorruptEvent):  # of whose time nothing is believed
            return KnownSince(began, moment(events.decode(entry.message).published_us / 1e6), entry.seq)
        return KnownSince(began, None, entry.seq)
    return KnownSince(began)


def _touches(entry: LogEntry, key: Key, epoch: bytes, names: Collection[str]) -> list[Touch]:
    try:
        event = events.decode(entry.message)
    except events.CorruptEvent:
        return []
    if event.epoch != epoch:
        return []
    found = []
    for part in event.parts:
        itself = key.l1 if key.l1 in part.keys else ""
        mine = tuple(name for name in part.scopes if name in names)
        if itself or mine:
            found.append(Touch(event.seq, event.published_us, part, mine, itself))
    return found


def _event_of(touch: Touch) -> TouchingEvent:
    what = [shown(touch.itself)] if touch.itself else []
    what += [scope_in_words(name) for name in touch.names]
    left = len(touch.part.keys) + len(touch.part.scopes) - len(what)
    more = f", and {left:,} other name{'s' * (left > 1)}" if left else ""
    part = touch.part
    return TouchingEvent(
        touch.seq,
        moment(touch.published_us / 1e6),
        ", ".join(what) + more,
        shown(part.origin),
        shown(part.reason),
        shown(part.trace),
    )


def storer(record: Record, known: KeyHistory) -> tuple[str, str]:
    """Who wrote the record, "" where that is not known; and the same in words.

    A record does not say whose it is. A write bears its event's seq, and is sent before its event is made. A load bears
    the seq at which its fill lease was granted, so the event of that seq came before it.
    """
    for touch in known.touches:
        if touch.seq == record.seq and touch.itself:
            who, at_ms = shown(touch.part.origin) or "a producer", touch.published_us // 1000
            if record.created_ms < at_ms:
                return who, f"written by {who}"
            if record.created_ms == at_ms:
                return "", f"written by {who}, or loaded right after that"
            return "", f"loaded after seq {touch.seq}; L2 does not note by which node"
    return "", "L2 does not note by which node"


def standing(key: Key, facts: KeyFacts, known: KeyHistory) -> tuple[StandingWrite, ...]:
    """The guards on the key and on what it lies in, with what the log says of when they were put up."""
    found: list[StandingWrite] = []
    for name, ends in facts.guards.items():
        itself = name == guard_name(key)
        what = "this key" if itself else scope_in_words(name)
        by = next((t for t in known.touches if (t.itself if itself else name in t.names)), None)
        up = (None,) if by is None else (moment(by.published_us / 1e6), shown(by.part.origin), shown(by.part.reason))
        found += [StandingWrite(what, moment(end / 1e6), *up) for end in ends]
    return tuple(sorted(found, key=lambda guard: guard.until, reverse=True))
