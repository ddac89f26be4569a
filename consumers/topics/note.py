"""The metadata that is committed with a group's offsets, and where a partition is read from by it."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from cachebus.consumers.topics.brokers import Committed

ANEW: Final = "anew"
CUT: Final = "cut"
EXPIRED: Final = "expired"
OTHERS: Final = "others"
L2: Final = "l2"
RULES: Final = "rules"
ANY_RULES: Final = "*"
"""What a source says of its rules that is not to be compared."""
WHY: Final = {
    ANEW: "the topic was deleted and made anew: what was in it and not read yet is gone",
    CUT: "messages were removed before they were read (by the topic's retention)",
    OTHERS: "the group's offsets are not those that its workers have committed: another program was in the group, or "
    "has set them, and what lies before them may not have been applied",
    RULES: "rules, or cascades, say another thing than those by which it was read before: what came before was not "
    "told by them",
    L2: "what was read before was applied at another Redis, or that one has lost all since",
    EXPIRED: "the group has no offsets (they have expired, or it is new), and messages were removed before that",
}
REMEDY: Final = {
    ANEW: "",
    RULES: "",
    L2: "",
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
    """By which rules and cascades messages were told, as `TopicSource.said`."""
    l2: str = ""
    """Where they were applied, as `Source.identity`."""

    def text(self) -> str:
        """The note as it is committed."""
        note = {
            "cachebus": self.namespace,
            "topic": self.identity,
            "missed": self.missed,
            "rules": self.said,
            "l2": self.l2,
        }
        return json.dumps(note)


def note_of(text: str) -> Note:
    """The note in this metadata; an empty one if another program has committed it."""
    try:
        found = json.loads(text)
        note = Note(*(str(found[name]) for name in ("cachebus", "topic", "missed", "rules", "l2")))
    except (ValueError, TypeError, KeyError, RecursionError):
        return Note()
    return note if note.missed in WHY else note._replace(missed="")


class StartOffset(NamedTuple):
    """Where a partition is read from, and why something was missed before that."""

    offset: int
    missed: str = ""


def begin_at(
    committed: Committed | None, first: int, ours: Note, known: str | None, *, cut: bool = False
) -> StartOffset:
    """Where to read a partition from.

    `first`: the first offset of its log. `ours`: what this worker will note. `known`: the identity of the topic that it
    has read before. `cut`: the messages that it was to read next are gone.
    """
    note = note_of(committed.note) if committed is not None else Note()
    before = note.identity or known
    if before and ours.identity and before != ours.identity:
        return StartOffset(first, ANEW)
    if cut:
        return StartOffset(first, CUT)
    if committed is None:
        return StartOffset(first, EXPIRED if first else "")
    if note.namespace not in ("", ours.namespace):  # another namespace's workers have not told our caches
        return StartOffset(first, EXPIRED if first else "")
    if committed.offset < first:
        return StartOffset(first, CUT)
    if note == Note() and committed.offset > 0:
        return StartOffset(committed.offset, OTHERS)
    if ours.l2 and note.l2 != ours.l2 and committed.offset > 0:
        return StartOffset(committed.offset, L2)
    if ours.said not in (note.said, ANY_RULES) and committed.offset > 0:
        return StartOffset(committed.offset, RULES)
    return StartOffset(committed.offset, note.missed)
