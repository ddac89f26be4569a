"""The metadata that is committed with a group's offsets, and where a partition is read from by it."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from cachebus.consumers.topics.brokers import Committed

ANEW: Final = "anew"
CUT: Final = "cut"
EXPIRED: Final = "expired"
OTHERS: Final = "others"
RULES: Final = "rules"
WHY: Final = {
    ANEW: "the topic was deleted and made anew: what was in it and not read yet is gone",
    CUT: "messages were removed before they were read (by the topic's retention)",
    OTHERS: "the group's offsets are not those that its workers have committed: another program was in the group, or "
    "has set them, and what lies before them may not have been applied",
    RULES: "rules say another thing than those by which it was read before: what was changed before was not told by "
    "them",
    EXPIRED: "the group has no offsets (they have expired, or it is new), and messages were removed before that",
}
REMEDY: Final = {
    ANEW: "",
    RULES: "",
    OTHERS: "have no other program in the group, and set no offsets for it: give that one a group of its own",
    CUT: "raise the topic's retention.ms above the time for which workers may be away",
    EXPIRED: "raise the brokers' offsets.retention.minutes, and the topic's retention.ms, above the time for which "
    "workers may be away",
}


class Note(NamedTuple):
    """The namespace that has committed, the topic's identity, and what is yet to be made up for."""

    namespace: str = ""
    identity: str = ""
    missed: str = ""
    """Why messages were missed, one of `WHY`; "" if none were."""
    said: str = ""
    """By which rules messages were told, as `TopicSource.said`."""

    def text(self) -> str:
        """The note as it is committed."""
        note = {"cachebus": self.namespace, "topic": self.identity, "missed": self.missed, "rules": self.said}
        return json.dumps(note)


def note_of(text: str) -> Note:
    """The note in this metadata; an empty one if another program has committed it."""
    try:
        found = json.loads(text)
        note = Note(*(str(found[name]) for name in ("cachebus", "topic", "missed", "rules")))
    except (ValueError, TypeError, KeyError, RecursionError):
        return Note()
    return note if note.missed in WHY else note._replace(missed="")


class Begin(NamedTuple):
    """Where a partition is read from, and why something was missed before that."""

    offset: int
    missed: str = ""


def begin_at(committed: Committed | None, first: int, ours: Note, known: str | None, *, cut: bool = False) -> Begin:
    """Where to read a partition from.

    `first`: the first offset of its log. `ours`: what this worker will note. `known`: the identity of the topic that it
    has read before. `cut`: the messages that it was to read next are gone.
    """
    note = note_of(committed.note) if committed is not None else Note()
    before = note.identity or known
    if before and ours.identity and before != ours.identity:
        return Begin(first, ANEW)
    if cut:
        return Begin(first, CUT)
    if committed is None:
        return Begin(first, EXPIRED if first else "")
    if note.namespace not in ("", ours.namespace):  # another namespace's workers have not told our caches
        return Begin(first, EXPIRED if first else "")
    if committed.offset < first:
        return Begin(first, CUT)
    if note == Note() and committed.offset > 0:
        return Begin(committed.offset, OTHERS)
    if note.said != ours.said and committed.offset > 0:
        return Begin(committed.offset, RULES)
    return Begin(committed.offset, note.missed)
