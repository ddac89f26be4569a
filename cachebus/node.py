"""This node's state, synchronous: its view of every shard, and what L1 holds under that view.

Whatever awaits happens above; here an event is applied, a value admitted or an entry looked at in one step. Entries
point to a group (shard, data type); retiring a group sends its entries through `peek` once, where they are checked
against the marks and move over to the group's successor, or go. So dropping a scope costs the same at any size.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from cachebus import event as events
from cachebus.clock import Clock, OtherClock
from cachebus.coherence import BEYOND, NEVER, Heard, Probed, Reservation, Shard
from cachebus.confirm import Watch
from cachebus.keys import Key, names_of
from cachebus.l1 import ENTRY_OVERHEAD_BYTES, L1, Entry, Group, grid, shared_int, size_class
from cachebus.observe import Counters, ShardStats
from cachebus.ports import Caller, ProbeReply
from cachebus.record import Record
from cachebus.withheld import Withheld

INF = float("inf")
OnApplied = Callable[[int, str, int, float], None]


class Details:
    """What few entries need: everything that makes a hit take the slow path, and the tags."""

    __slots__ = ("absent", "decode", "keep_until", "not_found", "soft_until", "tags", "version")

    def __init__(
        self, *, absent: bool = False, not_found: bool = False, soft_until: float = INF, keep_until: float = NEVER,
        tags: Sequence[str] = (), version: bytes = b"", decode: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        self.absent = absent
        """Nothing is in L2 under this key; only said for hierarchical searches, and for D at most."""
        self.not_found = not_found
        """The source says that there is nothing."""
        self.soft_until = soft_until
        self.keep_until = keep_until
        """Until when an expired value may stand in for a failing source."""
        self.tags = tags
        self.version = version
        self.decode = decode
        """Makes a copy of the value for each caller, where the policy wants that."""


ABSENT = Details(absent=True)


def details(entry: Entry) -> Details | None:
    """What an entry has beyond the ordinary."""
    return cast("Details | None", entry.extra)


class Node:
    """One node. Its id is unique in the fleet and made anew for every cache."""

    def __init__(self, *, name: str, shards: int, bound_s: float, l1: L1, clock: Clock, counters: Counters) -> None:
        self.id = f"{name}-{secrets.token_hex(4)}"
        self.clock = clock
        self.bound_s = bound_s
        self.shards = [Shard(i, bound_s) for i in range(shards)]
        self.l1 = l1
        self.counters = counters
        self.server_clocks = [OtherClock() for _ in self.shards]
        """The L2 servers' by shard: by them records expire. Those of a cluster are several machines'."""
        self.withheld: Withheld | None = None
        """What may not be believed, while this node has invalidations that L2 has not heard of."""
        self.watches = [Watch() for _ in range(shards)]
        """What is known of the register of all nodes, by shard."""
        self.on_applied: OnApplied | None = None
        """Called with shard, epoch, seq and monotonic time when a shard's applied seq moves: for tests and tools."""
        self.untidy = False
        """Whether retired entries may lie in L1."""
        self._groups: list[dict[str, tuple[Group, Group]]] = [{} for _ in range(shards)]
        self._lives = [0] * shards
        self._with_contexts: set[tuple[int, str]] = set()
        self._with_tags: set[tuple[int, str]] = set()
        self._valid_until = [shard.valid_until for shard in self.shards]

    def caller(self, shard: int) -> Caller:
        """How this node introduces itself to L2."""
        view = self.shards[shard]
        return Caller(self.id, view.applied, view.epoch)

    # -- groups -------------------------------------------------------------------------------------------------

    def group(self, shard: int, data_type: str, *, leased: bool = True) -> Group:
        """The live group of a shard and data type: of what the lease covers, or of what lives by its own time only."""
        pair = self._groups[shard].get(data_type)
        if pair is None:
            life = self._lives[shard]
            pair = (
                Group(shard, data_type, self._valid_until[shard], life, True),
                Group(shard, data_type, INF, life, False),
            )
            self._groups[shard][data_type] = pair
        return pair[0] if leased else pair[1]

    def _retire(self, shard: int, data_types: Sequence[str]) -> None:
        for data_type in data_types:
            pair = self._groups[shard].pop(data_type, None)
            if pair is not None:
                self.untidy = True
                counters = self.counters.of(data_type)
                for group in pair:
                    group.valid_until = NEVER
                    counters.l1_hits += group.hits
                    group.hits = 0

    def _spread_lease(self, shard: int) -> None:
        """Tell the groups, which the hit path looks at, how far the shard's lease reaches now."""
        valid_until = self.shards[shard].valid_until
        if valid_until != self._valid_until[shard]:
            self._valid_until[shard] = valid_until
            for leased, _ in self._groups[shard].values():
                leased.valid_until = valid_until

    # -- what arrives --------------------------------------------------------------------------------------------

    def hear(self, shard: int, event: events.Event) -> Heard:
        """Apply an event, wherever it comes from: the bus, the log, or this node's own write.

        One of another epoch drops all that is held of the shard; entering that epoch takes a probe.
        """
        view = self.shards[shard]
        before = view.applied
        heard = view.hear(event.epoch, event.seq)
        if heard is Heard.FOREIGN:
            self.void(shard, "epoch")
            return heard
        if heard is Heard.OLD:
            self.counters.events_repeated += 1
            return heard
        self.counters.events_applied += 1
        self.counters.holes += heard is Heard.AHEAD
        old_floor = view.floor
        view.drop(event.seq, event.floor, event.keys, event.names)
        self._drop_keys(event.keys, event.seq)
        if event.names or view.floor > old_floor:
            self._retire(shard, self._touched(shard, event.names, everything=view.floor > old_floor))
        self._spread_lease(shard)
        if view.applied != before and self.on_applied is not None:
            self.on_applied(shard, view.epoch.decode(), view.applied, self.clock())
        return heard

    def _drop_keys(self, keys: Sequence[str], seq: int) -> None:
        entries = self.l1.entries
        for key in keys:
            entry = entries.get(key)
            if entry is not None and entry.seq < seq:
                self.l1.remove(key)

    def _touched(self, shard: int, names: Sequence[str], *, everything: bool) -> list[str]:
        """The data types whose groups these scopes and tags may touch; those of a type without contexts or tags
        can't be touched by a scope of contexts or a tag, which keeps the invalidation of single resources cheap."""
        groups = self._groups[shard]
        if everything:
            return list(groups)
        found: set[str] = set()
        for name in names:
            shape, _, rest = name.partition("\x1f")
            if shape == "T":
                return list(groups)
            if shape == "G":
                found.update(t for s, t in self._with_tags if s == shard)
            elif shape[:1] == "T":
                found.update(t for s, t in self._with_contexts if s == shard)
            else:
                data_type = rest.split("\x1f", 2)[1] if "\x1f" in rest else rest
                if shape == "D" or (shard, data_type) in self._with_contexts:
                    found.add(data_type)
        return [data_type for data_type in found if data_type in groups]

    def probed(self, shard: int, reply: ProbeReply, sent_at_s: float, now_s: float) -> Probed:
        """Take in a probe's reply; with marks it also moves the node into the reply's epoch, or over a gap."""
        view = self.shards[shard]
        self.answered(shard, reply, sent_at_s, now_s)
        probed = view.probed(reply.epoch, reply.seq, sent_at_s)
        self._spread_lease(shard)
        return probed

    def answered(self, shard: int, reply: ProbeReply, sent_at_s: float, now_s: float) -> None:
        """What any probe's reply tells: the server's time, and whether the lease had run out by then."""
        view = self.shards[shard]
        if view.epoch != reply.epoch:
            self.server_clocks[shard] = OtherClock()  # perhaps another machine's now
        self.server_clocks[shard].heard(reply.server_us / 1e6, sent_at_s, now_s)
        self.watches[shard].saw(reply.register, now_s)
        self.counters.lease_lapses += view.valid_until < now_s and view.epoch == reply.epoch

    def enter(self, shard: int, reply: ProbeReply, sent_at_s: float, cause: str, asked: int = BEYOND) -> None:
        """Begin a shard anew from a probe's reply with marks: its L1 is dropped, whatever is under way is marked.
        `asked`: what `Shard.asking` gave when the probe was sent."""
        view = self.shards[shard]
        if view.epoch == reply.epoch:
            self.counters.events_flushed += view.unheard(reply.seq)
        self.void(shard, cause)
        view.enter(reply.epoch, reply.seq, reply.floor, reply.marks or {}, sent_at_s, asked)
        self._spread_lease(shard)
        if self.on_applied is not None:
            self.on_applied(shard, view.epoch.decode(), view.applied, self.clock())

    def void(self, shard: int, cause: str) -> None:
        """Drop a shard's L1, mark everything under way, give up the lease."""
        self.shards[shard].void()
        self._lives[shard] += 1
        self._retire(shard, list(self._groups[shard]))
        self._spread_lease(shard)
        self.counters.flushed(cause)

    def forget(self, key: Key) -> None:
        """Drop one key of which nothing is known for sure, as after a write whose outcome is unknown."""
        view = self.shards[key.shard]
        view.drop(BEYOND, view.floor, (key.l1,), ())
        self.l1.remove(key.l1)

    # -- L1 ------------------------------------------------------------------------------------------------------

    def peek(self, key: Key, now_s: float) -> Entry | None:
        """The key's entry if it may be believed and served now; the whole serving rule, behind the fast path."""
        entry = self.trusted(key)
        if entry is None or not self.shards[key.shard].serves(now_s, entry.expires, entry.read_until):
            return None
        return entry

    def standing_in(self, key: Key, now_s: float) -> Entry | None:
        """An expired entry that may still be served while the source fails."""
        entry = self.trusted(key)
        extra = None if entry is None else details(entry)
        if entry is None or extra is None or now_s >= extra.keep_until:
            return None
        return entry if self.shards[key.shard].serves(now_s, INF, entry.read_until) else None

    def trusted(self, key: Key) -> Entry | None:
        """The key's entry unless a flush, scope or tag has replaced it since; moves it to the live group."""
        entry = self.l1.entries.get(key.l1)
        if entry is None:
            return None
        group = entry.group
        live = self.group(key.shard, group.data_type, leased=group.leased)
        if group is live:
            return entry
        if self._replaced(entry):
            self.l1.remove(key.l1)
            return None
        entry.group = live
        return entry

    def _replaced(self, entry: Entry) -> bool:
        group = entry.group
        if group.generation != self._lives[group.shard]:
            return True
        extra = details(entry)
        names = names_of(entry.key)
        return self.shards[group.shard].hides(entry.seq, names if extra is None else (*names, *extra.tags))

    def admit(
        self, key: Key, value: object, record: Record, reservation: Reservation, read_started_s: float,
        *, l1_ttl_s: float = INF, keep_s: float = 0.0, decode: Callable[[], object] | None = None, fenced: bool = True,
    ) -> bool:  # fmt: skip
        """Let what was read, loaded or written under the reservation into L1, if nothing replaced it meanwhile.

        `fenced=False`: L2 did not confirm it, so it lives until D after its load began, and no longer.
        """
        view = self.shards[key.shard]
        names = (*key.names, *record.tags) if view.marks else ()
        withheld = self.withheld is not None and self.withheld.covers(key, record.tags)
        if withheld or not view.admits(reservation, key.l1, names, record.epoch, record.seq):
            self.counters.entries_refused += 1
            return False
        read_until = grid(read_started_s + self.bound_s, self.bound_s)
        present = self.l1.entries.get(key.l1)
        if present is not None and present.extra is not ABSENT:
            if present.seq > record.seq:
                return False
            # Of two loads without L2 the one that began later is the newer, and lives longer, whichever ends first.
            if not fenced and present.seq == record.seq and present.read_until > read_until and self.trusted(key):
                return False
        expires = self._deadline(key.shard, record.expires_ms, read_started_s)
        if l1_ttl_s != INF:
            expires = min(expires, grid(self.clock() + l1_ttl_s, l1_ttl_s))
        if not fenced:
            expires = min(expires, read_until)
        extra, fast_until = None, expires
        if record.flags or record.tags or record.soft_ms or keep_s or decode is not None:
            soft = self._deadline(key.shard, record.soft_ms, read_started_s)
            extra = Details(
                not_found=record.not_found, soft_until=soft, keep_until=expires + keep_s, tags=record.tags,
                version=record.version, decode=decode,
            )  # fmt: skip
            fast_until = NEVER if record.flags or decode is not None else min(expires, soft)
        data_type = key.family.data_type
        if record.tags:
            self._with_tags.add((key.shard, data_type))
        self._put(key, value, fast_until, record.seq, read_until, expires, extra, len(record.payload), fenced)
        return True

    def _deadline(self, shard: int, server_ms: int, now_s: float) -> float:
        """A time on the L2 server's clock (0 = never) on this node's, on the grid that entries share."""
        if not server_ms:
            return INF
        at_s = server_ms / 1000 - self.server_clocks[shard].offset_s
        return grid(at_s, at_s - now_s)

    def admit_absent(self, key: Key, reservation: Reservation, read_started_s: float) -> None:
        """Remember for D at most that L2 holds nothing under the key. A fill publishes nothing, hence the limit."""
        view = self.shards[key.shard]
        if self.withheld is not None and self.withheld.covers(key):
            return
        if view.admits(reservation, key.l1, key.names if view.marks else (), view.epoch, reservation.applied):
            until = grid(read_started_s + self.bound_s, self.bound_s)
            self._put(key, None, NEVER, reservation.applied, until, until, ABSENT, 0, True)

    def _put(
        self, key: Key, value: object, fast_until: float, seq: int, read_until: float, expires: float,
        extra: Details | None, size: int, leased: bool,
    ) -> None:  # fmt: skip
        group = self.group(key.shard, key.family.data_type, leased=leased)
        if key.contexts != (None, None, None):
            self._with_contexts.add((key.shard, key.family.data_type))
        size = size_class(size + ENTRY_OVERHEAD_BYTES)
        self.l1.put(Entry(key.l1, value, group, fast_until, shared_int(seq), read_until, expires, size, extra))

    def sweep(self) -> Iterator[int]:
        """Take retired and expired entries out of memory, a millisecond a step."""
        self.untidy = False
        now = self.clock()

        def dead(entry: Entry) -> bool:
            group = entry.group
            live = self._groups[group.shard].get(group.data_type)
            if live is None or group is not live[not group.leased]:
                return self._replaced(entry)
            extra = details(entry)
            keep = NEVER if extra is None else extra.keep_until
            return now >= entry.expires and now >= keep

        return self.l1.sweep(dead, self.clock)

    # -- figures -------------------------------------------------------------------------------------------------

    def l1_hits(self) -> dict[str, int]:
        """Hits that live groups hold, by data type."""
        found: dict[str, int] = {}
        for groups in self._groups:
            for data_type, pair in groups.items():
                found[data_type] = found.get(data_type, 0) + pair[0].hits + pair[1].hits
        return found

    def shard_stats(self, now_s: float) -> tuple[ShardStats, ...]:
        """Every shard as this node sees it."""
        return tuple(
            ShardStats(v.index, v.epoch.decode(), v.applied, v.head, max(0.0, v.valid_until - now_s), len(v.marks))
            for v in self.shards
        )
