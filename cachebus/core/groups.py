"""What entries of L1 share by shard and data type, and which of them an invalidation of scopes and tags may touch.

Retiring a group sends its entries through the slow path once, where they are checked against the invalidated scopes and
move over to the group's successor, or go. So dropping a scope costs the same at any size.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachebus.core.answers import INF, NEVER
from cachebus.core.shard import Shard
from cachebus.keys.key import ALL_OF_SHARD, GIVEN, Key
from cachebus.l1 import Entry, Group
from cachebus.observe import OTHER, Counters


class Groups:
    """The live groups of one node."""

    def __init__(self, shards: Sequence[Shard], counters: Counters) -> None:
        self._shards = shards
        self._counters = counters
        self.live: list[dict[str, tuple[Group, Group]]] = [{} for _ in shards]
        """By shard and data type: of what the lease covers, and of what lives by its own time only."""
        self.lives = [0] * len(shards)
        """By shard how often all was dropped: what is of an earlier life is not believed."""
        self.valid_until_s = [NEVER] * len(shards)
        """By shard how far the lease reaches that live groups know of."""
        self.with_contexts: list[set[str]] = [set() for _ in shards]
        self.with_tags: list[set[str]] = [set() for _ in shards]
        """By shard: data types of which this node holds, or held, anything in a context, or with a tag."""
        self.untidy = False
        """Whether retired entries may lie in L1."""

    def of(self, index: int, data_type: str, *, fenced: bool = True) -> Group:
        """The live group of a shard and data type."""
        live = self.live[index]
        pair = live.get(data_type)
        if pair is None:
            name, life = self._counters.name_of(data_type), self.lives[index]
            pair = live.get(name)
            if pair is None:
                born = self._shards[index].drop_count
                of_lease = Group(index, name, self.valid_until_s[index], life, True, born)
                pair = live[name] = of_lease, Group(index, name, INF, life, False, born)
        return pair[0] if fenced else pair[1]

    def joined(self, key: Key, *, fenced: bool, tags: Sequence[str]) -> Group:
        """The live group for a new entry of the key, with these tags."""
        group = self.of(key.shard, key.family.data_type, fenced=fenced)
        if key.everywhere:
            self.with_contexts[key.shard].add(group.data_type)
        if tags:
            self.with_tags[key.shard].add(group.data_type)
        return group

    def holds(self, entry: Entry) -> bool:
        """Whether an entry is in a live group."""
        group = entry.group
        pair = self.live[group.shard].get(group.data_type)
        return pair is not None and group is pair[not group.fenced]

    def declare(self, data_type: str) -> None:
        """A type has a policy: it gets a group and counters of its own, however many types there are."""
        if self._counters.declare(data_type):
            # Its entries may lie in the others' groups: from there they move over one by one, as after a scope's drop.
            for index in range(len(self.live)):
                self.retire(index, [OTHER])
            for known in (*self.with_contexts, *self.with_tags):
                if OTHER in known:
                    known.add(data_type)

    def retire(self, index: int, data_types: Sequence[str]) -> None:
        """Have the entries of these types looked at before they are served again."""
        for data_type in data_types:
            pair = self.live[index].pop(data_type, None)
            if pair is not None:
                self.untidy = True
                counters = self._counters.of(data_type)
                for group in pair:
                    group.valid_until_s = NEVER
                    counters.l1_hits += int(group.hits)
                    group.hits = 0.0

    def retire_all(self, index: int) -> None:
        """Have all entries of a shard looked at before they are served again."""
        self.retire(index, list(self.live[index]))

    def end_life(self, index: int) -> None:
        """Believe no entry of a shard any more."""
        self.lives[index] += 1
        self.retire_all(index)

    def spread(self, index: int, valid_until_s: float) -> None:
        """Tell the groups, which the hit path looks at, how far the shard's lease reaches now."""
        if valid_until_s != self.valid_until_s[index]:
            self.valid_until_s[index] = valid_until_s
            for fenced, _ in self.live[index].values():
                fenced.valid_until_s = valid_until_s

    # -- which of them an invalidation touches ----------------------------------------------------------------------

    def touched(self, index: int, scopes: Sequence[str]) -> list[str]:
        """The data types that these scopes and tags may touch; those of a type without contexts or tags can't be
        touched by a scope of contexts or a tag, which keeps the invalidation of single resources cheap."""
        live, in_contexts = self.live[index], self.with_contexts[index]
        found: set[str] = set()
        some_tag = some_contexts = False
        for scope in scopes:
            shape, _, rest = scope.partition(GIVEN)
            if shape in ("T", ALL_OF_SHARD):
                return list(live)
            if shape == "G":
                some_tag = True
            elif shape[:1] == "T":
                some_contexts = True
            else:
                data_type = rest if shape == "Y" else rest.split(GIVEN, 2)[1]
                data_type = data_type if data_type in live else OTHER
                if shape in "DY" or data_type in in_contexts:
                    found.add(data_type)
        if some_tag:
            found |= self.with_tags[index]
        if some_contexts:
            found |= in_contexts
        return [data_type for data_type in found if data_type in live]

    def split(self, index: int, scopes: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Of scopes of which L2 holds nothing in any context: those that this node is to remember, and those that
        concern only what is under way, ids in all contexts of types that this node too has in none."""
        remembered: list[str] = []
        passing: list[str] = []
        for scope in scopes:
            passes = scope[0] == "I" and not self._has_contexts(index, scope.split(GIVEN, 3)[2])
            (passing if passes else remembered).append(scope)
        return remembered, passing

    def _has_contexts(self, index: int, data_type: str) -> bool:
        known = self.with_contexts[index]
        return data_type in known or OTHER in known

    def hits(self) -> dict[str, int]:
        """Hits that live groups hold, by data type."""
        found: dict[str, int] = {}
        for groups in self.live:
            for data_type, pair in groups.items():
                found[data_type] = found.get(data_type, 0) + int(pair[0].hits + pair[1].hits)
        return found
