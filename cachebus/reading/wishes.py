"""What those who share a load ask of the record that is made of it."""

from __future__ import annotations

from collections.abc import Sequence

from cachebus.base.lifetimes import TAGS_MAX
from cachebus.reading.request import Request


class Wishes:
    """The tags of all who have joined before the value was made, and the shortest time to live."""

    __slots__ = ("are_fixed", "tags", "ttl_s")

    def __init__(self, tags: Sequence[str], ttl_s: float | None) -> None:
        self.tags = dict.fromkeys(tags)
        self.ttl_s = ttl_s
        """In seconds; None is the type's."""
        self.are_fixed = False
        """Whether the value is made by now: who comes later is given one with these."""

    def can_include(self, request: Request) -> bool:
        """Whether a caller's are heeded, or can be still."""
        if not self.are_fixed:
            return True
        longest_s = request.rules.ttl_s if self.ttl_s is None else self.ttl_s
        return self.tags.keys() >= set(request.tags) and (request.ttl_s is None or longest_s <= request.ttl_s)

    def has_room_for(self, tags: Sequence[str]) -> bool:
        """Whether a record can carry these tags, too."""
        return len(self.tags) + sum(tag not in self.tags for tag in tags) <= TAGS_MAX

    def add(self, tags: Sequence[str], ttl_s: float | None) -> list[str]:
        """Take these over too. Returns which of the tags are new."""
        new = [tag for tag in tags if tag not in self.tags]
        self.tags.update(dict.fromkeys(new))
        if ttl_s is not None:
            self.ttl_s = ttl_s if self.ttl_s is None else min(self.ttl_s, ttl_s)
        return new
