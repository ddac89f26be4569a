"""The node's own parts, thawed from a frozen state and frozen again."""

from __future__ import annotations

from collections import OrderedDict

from cachebus.base.clock import OtherClock
from cachebus.core.details import Details, details
from cachebus.core.doubts import Doubts
from cachebus.core.shard import Shard
from cachebus.keys.key import scopes_of
from cachebus.l1 import Entry, Group
from tests.model.frozen import INF, NEVER, NOW, Core, Held, View, ago, ahead_of_now, bucket_marks, frozen_marks
from tests.model.rig import Rig

_SLOTS = {
    "_ahead",
    "_recent_drops",
    "_recent_drops_low",
    "_recent_drops_max",
    "_pending_probes",
    "_suspects",
    "applied",
    "bound_s",
    "drop_count",
    "doubts",
    "epoch",
    "foreign",
    "highest_seq",
    "index",
    "former_epochs",
    "low",
    "invalidated",
    "max_invalidated_scopes",
    "tags_dropped",
    "valid_until_s",
    "_invalidated_count",
}
_NODE = {
    "id",
    "clock",
    "bound_s",
    "shards",
    "l1",
    "counters",
    "server_clocks",
    "born_us",
    "blocked",
    "memberships",
    "applied_hook",
    "hooks",  # nobody subscribes
    "lapses",
    "groups",
    "about",
    "largest",
    "keep_without_l2",
    "_read_bounds",  # a memo of a pure function: no state
}
_GROUPS = {"_shards", "_counters", "live", "lives", "valid_until_s", "with_contexts", "with_tags", "untidy"}
LIFE = 1
"""The generation of what L1 holds since the last flush; older ones are 0."""


def _may_come(shard: Shard) -> tuple[tuple[bytes, int], ...]:
    return tuple(sorted((epoch, seq) for epoch, seq in shard.foreign.items() if epoch > shard.epoch))


class Freezer:
    """Puts a rig's node into a state, and takes its state."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._keys = rig.setup.keys
        self.types = tuple(sorted({key.family.data_type for key in self._keys}))
        if (set(Shard.__slots__), vars(rig.node).keys(), vars(rig.node.groups).keys()) != (_SLOTS, _NODE, _GROUPS):
            raise AssertionError("Shard, Node or Groups has other parts now: teach the model to freeze them")

    def thaw(self, state: Core) -> None:
        """Make the node be in a state, at the moment NOW."""
        rig, view, shard, node = self._rig, state.view, self._rig.shard, self._rig.node
        rig.now = NOW
        shard.epoch, shard.applied, shard.highest_seq = view.epoch, view.applied, view.highest_seq
        shard.low, shard.invalidated, shard.foreign = dict(view.low), bucket_marks(view.invalidated), dict(view.foreign)
        shard._invalidated_count = sum(map(len, shard.invalidated.values()))
        shard.former_epochs, shard._suspects = {}, ()
        shard.valid_until_s = NOW + view.valid
        shard._ahead = set(view.ahead)
        shard._pending_probes.clear()
        shard._pending_probes.extend((seq, NOW + sent) for seq, sent in view.owed)
        shard.drop_count, shard._recent_drops, shard._recent_drops_low = (
            view.count,
            OrderedDict(view.recent_drops),
            view.recent_drops_low,
        )
        shard.tags_dropped = dict(view.tags_dropped)
        shard.doubts = Doubts()
        for name, count, at in sorted(view.doubts, key=lambda doubt: doubt[2]):
            shard.doubts.note([name], count, NOW + at)
        node.server_clocks = [OtherClock()]
        node.groups.lives[0] = LIFE
        node.groups.valid_until_s[0] = NOW + state.spread
        node.groups.with_contexts = [set(self.types) if state.with_contexts else set()]
        node.groups.with_tags = [set(self.types) if state.with_tags else set()]
        node.groups.live[0] = {
            t: (Group(0, t, NOW + valid, LIFE, True, view.count), Group(0, t, INF, LIFE, False, view.count))
            for t, valid in state.groups
        }
        node.l1.clear()
        for key, held in zip(self._keys, state.held, strict=True):
            if held is not None:
                node.l1.put(self._entry(key.l1, key.family.data_type, held))

    def _entry(self, name: str, data_type: str, held: Held) -> Entry:
        if held.place:
            born = -1 if held.place == 3 else self._rig.shard.drop_count
            group = Group(0, data_type, NEVER, LIFE - 1 if held.place == 2 else LIFE, held.fenced, born)
        else:
            group = self._rig.node.groups.live[0][data_type][not held.fenced]
        extra = None if held.tags is None else Details(fallback_until_s=INF, tags=held.tags, version=b"\0" * 8)
        times = (NOW + held.read_until_s, NOW + held.expires_s)
        return Entry(name, held.value, group, NOW + held.fast_until_s, held.seq, *times, 1, extra)

    def freeze(self) -> Core:
        """The state that the node is in."""
        shard, node = self._rig.shard, self._rig.node
        if not (shard.applied <= shard.highest_seq and all(seq > shard.applied + 1 for seq in shard._ahead)):
            raise AssertionError("applied is beyond the highest seq, or an event waits behind no gap")
        view = View(
            shard.epoch,
            shard.applied,
            shard.highest_seq,
            tuple(sorted(shard.low.items())),
            frozen_marks(shard.invalidated),
            ahead_of_now(shard.valid_until_s),
            _may_come(shard),
            tuple(sorted(shard._ahead)),
            tuple((seq, ago(sent)) for seq, sent in shard._pending_probes),
            shard.drop_count,
            tuple(sorted(shard._recent_drops.items())),
            shard._recent_drops_low,
            tuple(sorted((name, count, ago(at)) for name, (count, at) in shard.doubts.scopes.items())),
            tuple(sorted(shard.tags_dropped.items())),
        )
        groups = node.groups.live[0]
        return Core(
            view,
            tuple((t, ahead_of_now(groups[t][0].valid_until_s)) for t in sorted(groups)),
            ahead_of_now(node.groups.valid_until_s[0]),
            any(node.groups.with_contexts),
            any(node.groups.with_tags),
            tuple(self._held(node.l1.entries.get(key.l1)) for key in self._keys),
        )

    def _held(self, entry: Entry | None) -> Held | None:
        if entry is None:
            return None
        group, extra, shard = entry.group, details(entry), self._rig.shard
        live = self._rig.node.groups.live[0].get(group.data_type)
        place = 0 if live is not None and group is live[not group.fenced] else 1
        if place and group.valid_until_s != NEVER:
            raise AssertionError("a group has been retired, and its entries are served still")
        scopes = (*scopes_of(entry.key)[1], *(() if extra is None else extra.tags))
        if place and shard.doubts.cover(scopes, group.born_at_drop):
            place = 3
        if group.generation != self._rig.node.groups.lives[0]:
            place = 2
        return Held(
            entry.value,
            entry.seq,
            ahead_of_now(entry.read_until_s),
            ahead_of_now(entry.expires_s),
            ahead_of_now(entry.fast_until_s),
            place,
            group.fenced,
            None if extra is None else tuple(extra.tags),
        )  # type: ignore[arg-type]
