"""This node's state: its view of every shard, and what L1 holds under that view.

Nothing here awaits. An event is applied, a value admitted, or an entry looked at, in one step. What entries share, and
why dropping a scope costs the same at any size, is said in `groups`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Final

from cachebus.base.clock import Clock, OtherClock
from cachebus.base.log import logger
from cachebus.core.admission import INF, Offer, ReadBounds, deadline_s, entry_bytes, fast_until_s
from cachebus.core.answers import BEYOND, NEVER, Heard, HeardSoFar, Probed, Reservation
from cachebus.core.blocked import Blocked
from cachebus.core.details import ABSENT, details
from cachebus.core.figures import stats_of
from cachebus.core.groups import Groups
from cachebus.core.membership import MembershipView
from cachebus.core.ports import TOPIC, About, Caller, Change, Invalidated, ProbeReply
from cachebus.core.shard import MAX_INVALIDATED_SCOPES, Shard
from cachebus.keys.key import Key, is_scope, scopes_of
from cachebus.l1 import L1, Entry, grid, shared_int
from cachebus.observe import Counters, ShardStats
from cachebus.wire import event as events
from cachebus.wire.record import Record

OnApplied = Callable[[int, str, int, float], None]
DOUBT_S: Final = 60.0
"""For so long at least it is doubted what was held, or had begun, before an invalidation of unknown outcome."""


class Node:
    """One node. Its id is unique in the fleet and made anew for every cache."""

    def __init__(
        self,
        *,
        name: str,
        shards: int,
        bound_s: float,
        l1: L1,
        clock: Clock,
        counters: Counters,
        guard_max_s: float = 0.0,
        keep_without_l2: bool = True,
        max_invalidated_scopes: int = MAX_INVALIDATED_SCOPES,
        topic: str | None = None,
    ) -> None:
        """`topic`: by which events are heard, where they go over Kafka."""
        self.id = f"{name}-{secrets.token_hex(4)}"
        self.clock = clock
        self.bound_s = bound_s
        own = About(ceil(bound_s * 1000), ceil(guard_max_s * 1000), keeps_without_l2=keep_without_l2)
        self.about = own if topic is None else own._replace(more=((TOPIC, topic),))
        """What this node says of itself."""
        self.largest = [own] * shards
        """The largest staleness bound and the longest guard of the fleet that this node has heard of, by shard; and
        whether of anybody that keeps what it loads alone."""
        self.keep_without_l2 = keep_without_l2
        """Whether what L2 did not confirm may be kept, for D."""
        self._read_bounds = ReadBounds(bound_s)
        self.shards = [Shard(i, bound_s, max_invalidated_scopes=max_invalidated_scopes) for i in range(shards)]
        self.l1 = l1
        self.counters = counters
        self.server_clocks = [OtherClock() for _ in self.shards]
        """The L2 servers' by shard: by them records expire. Those of a cluster are several machines'."""
        self.born_us = [0] * shards
        """When the shard's epoch began on its L2 server's clock; 0: unknown."""
        self.blocked: Blocked | None = None
        """What may not be believed, while this node has invalidations that L2 has not heard of."""
        self.views = [MembershipView() for _ in range(shards)]
        """What is known of the nodes' rows, by shard."""
        self.on_applied: OnApplied | None = None
        """Called with shard, epoch, seq and monotonic time when a shard's applied seq moves: for tests and tools."""
        self.groups = Groups(self.shards, counters)
        """What L1's entries share."""

    def caller(self, shard: int) -> Caller:
        """How this node introduces itself to L2."""
        view = self.shards[shard]
        largest = self.largest[shard]
        heard = largest.bound_ms, largest.guard_ms, largest.keeps_without_l2
        return Caller(self.id, view.applied, view.epoch, self.about, *heard, view.left)

    def _spread_lease(self, shard: int) -> None:
        self.groups.spread(shard, self.shards[shard].valid_until)

    # -- what arrives --------------------------------------------------------------------------------------------

    def hear(self, shard: int, event: events.Event) -> Heard:
        """Apply an event of the bus or the log. One of another epoch changes nothing: only a probe moves a node.

        `CorruptEvent`, and nothing is changed, for one that names scopes of no known shape: counted as applied, it
        would hide that what it replaced is still served."""
        if not all(map(is_scope, event.scopes)):
            raise events.CorruptEvent("it names a scope of no known shape")
        view = self.shards[shard]
        before = view.applied
        heard = view.hear(event.epoch, event.seq)
        if heard is Heard.OLD:
            self.counters.events_repeated += 1
            return heard
        if heard is Heard.FOREIGN or heard is Heard.LEFT:
            self.counters.events_foreign += 1
            return heard
        self.counters.events_applied += 1
        self.counters.gaps += heard is Heard.AHEAD
        marking, passing = self.groups.split(shard, event.scopes) if event.left_out else (event.scopes, ())
        raised = view.drop(event.seq, event.keys, marking, passing=passing, bucket=event.bucket, low=event.low)
        self._drop_keys(event.keys, event.seq)
        self.counters.watermarks_raised += raised
        if raised:
            self.groups.retire_all(shard)
        elif event.scopes:
            self.groups.retire(shard, self.groups.touched(shard, event.scopes))
        self._spread_lease(shard)
        if view.applied != before and self.on_applied is not None:
            self.on_applied(shard, view.epoch.decode(), view.applied, self.clock())
        return heard

    def wrote(self, shard: int, change: Change, body: bytes, part: events.WritePart) -> None:
        """Apply an own write, of which L2 has just replied, before its caller is told. In another epoch than this
        node's nothing that it holds of the shard may be believed: the write must hold here at once."""
        if not change.head:
            return
        if change.epoch != self.shards[shard].epoch:
            self.void(shard, "epoch")
            return
        try:
            event = events.with_head(change.head, body, [part])
        except events.CorruptEvent:
            self.counters.events_corrupt += 1
            self.void(shard, "corrupt")
        else:
            self.hear(shard, event)

    def _drop_keys(self, keys: Sequence[str], seq: int) -> None:
        entries = self.l1.entries
        for key in keys:
            entry = entries.get(key)
            if entry is not None and entry.seq < seq:
                self.l1.remove(key)

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
        self.views[shard].saw(reply.nodes_name, now_s)
        known = self.largest[shard]
        self.largest[shard] = About(
            max(reply.bound_ms, known.bound_ms),
            max(reply.guard_ms, known.guard_ms),
            keeps_without_l2=reply.keeps_without_l2 or known.keeps_without_l2,
        )
        if view.valid_until < now_s and (view.epoch == reply.epoch or view.valid_until > NEVER):
            self.counters.lease_lapses += 1
            logger.info("shard {}: its lease had lapsed {:.3f} s before L2 answered", shard, now_s - view.valid_until)

    def begin_epoch(
        self, shard: int, reply: ProbeReply, sent_at_s: float, cause: str, asked: HeardSoFar | None = None
    ) -> None:
        """Begin a shard anew from a probe's reply with marks: L1 is dropped, and whatever is under way is overtaken.
        `asked`: what `Shard.heard_so_far` gave when the probe was sent."""
        view = self.shards[shard]
        if view.epoch == reply.epoch:
            self.counters.events_flushed += view.unheard(reply.seq)
        self.void(shard, cause)
        invalidated = reply.invalidated or Invalidated({}, {})
        view.begin_epoch(reply.epoch, reply.seq, invalidated.by_bucket, invalidated.low, sent_at_s, asked)
        self.born_us[shard] = reply.born_us
        self._spread_lease(shard)
        if self.on_applied is not None:
            self.on_applied(shard, view.epoch.decode(), view.applied, self.clock())

    def void(self, shard: int, cause: str) -> None:
        """Drop a shard's L1, overtake everything under way, give up the lease."""
        self.shards[shard].void()
        self.groups.end_life(shard)
        self._spread_lease(shard)
        self.counters.flushed(cause)

    def forget(self, shard: int, keys: Sequence[Key], scopes: Sequence[str] = ()) -> None:
        """Drop keys, and what lies in scopes and tags, of which nothing is known for sure: after a write of unknown
        outcome."""
        view = self.shards[shard]
        view.drop(BEYOND, [key.l1 for key in keys], ())
        for key in keys:
            self.l1.remove(key.l1)
        if scopes and not view.doubts.note(scopes, view.drop_count, self.clock()):
            self.void(shard, "unknown")
        elif scopes:
            self.groups.retire(shard, self.groups.touched(shard, scopes))

    def settle_doubts(self, swept_s: float) -> None:
        """All that was held has been looked at since then: older doubts concern nothing any more, but for loads that
        last very long."""
        for view in self.shards:
            view.doubts.settle(min(swept_s - DOUBT_S, view.fresh_as_of_s))

    def block(self, shard: int, keys: Sequence[Key], scopes: Sequence[str]) -> None:
        """Believe nothing of these, whoever vouches for it, until `unblock`: L2 has yet to hear of their end."""
        if self.blocked is None:
            self.blocked = Blocked()
        self.blocked.add(shard, keys, scopes)

    def unblock(self, shard: int, keys: Sequence[Key], scopes: Sequence[str]) -> None:
        """L2 has heard of these once."""
        if self.blocked is not None:
            self.blocked.remove(shard, keys, scopes)
            self.blocked = self.blocked or None

    def tell_applied(self, hook: OnApplied | None) -> None:
        """Have `hook` called with shard, epoch, seq and monotonic time (s) when a shard's applied seq moves."""
        self.on_applied = hook

    # -- L1 ------------------------------------------------------------------------------------------------------

    def take_away(self, key: Key, seq: int) -> None:
        """Drop what is held of a key, unless it is of a later time than this seq. What was loaded without L2 stays: it
        ends within D of its load, and is no fallback."""
        entry = self.l1.entries.get(key.l1)
        if entry is not None and entry.seq <= seq and entry.group.leased:
            self.l1.remove(key.l1)

    def end_fallback(self, key: Key, seq: int) -> None:
        """What is held of a key is no fallback once it has expired, unless it is of a later time than this seq.
        Until then it is served on: without L2, who reads past memory must not have all others ask the source."""
        entry = self.l1.entries.get(key.l1)
        extra = None if entry is None else details(entry)
        if entry is not None and extra is not None and not extra.absent and entry.seq <= seq:
            extra.fallback_until = NEVER

    def peek(self, key: Key, now_s: float) -> Entry | None:
        """The key's entry if it may be believed and served now; the whole serving rule, behind the fast path."""
        entry = self.trusted(key)
        if entry is None or not self.shards[key.shard].serves(now_s, entry.expires, entry.read_until):
            return None
        return entry

    def fallback(self, key: Key, now_s: float) -> Entry | None:
        """An expired entry that may be served now while the source fails."""
        entry = self._kept_as_fallback(key, now_s)
        return entry if entry is not None and self.shards[key.shard].serves(now_s, INF, entry.read_until) else None

    def _kept_as_fallback(self, key: Key, now_s: float) -> Entry | None:
        """An entry that is kept for when the source fails, be it served now or not. "Not found" is no value."""
        entry = self.trusted(key)
        extra = None if entry is None else details(entry)
        return None if extra is None or extra.not_found or now_s >= extra.fallback_until else entry

    def trusted(self, key: Key) -> Entry | None:
        """The key's entry unless a flush, scope or tag has replaced it since; moves it to the live group."""
        entry = self.l1.entries.get(key.l1)
        if entry is None:
            return None
        group = entry.group
        live = self.groups.of(key.shard, key.family.data_type, leased=group.leased)
        if group is live:
            return entry
        if self._replaced(entry):
            self.l1.remove(key.l1)
            return None
        entry.group = live
        return entry

    def _replaced(self, entry: Entry) -> bool:
        group = entry.group
        if group.generation != self.groups.lives[group.shard]:
            return True
        view = self.shards[group.shard]
        if not view.invalidated and not view.low and not view.doubts.scopes:
            return False
        extra = details(entry)
        bucket, scopes = scopes_of(entry.key)
        scopes = scopes if extra is None else (*scopes, *extra.tags)
        if view.below(entry.seq, bucket):
            self.counters.lost_to_watermarks += 1
            return True
        return view.hides(entry.seq, bucket, scopes) or view.doubts.cover(scopes, group.born_at_drop)

    def admit(self, offer: Offer) -> bool:
        """Let what is offered into L1, if nothing has overtaken it. Gives whether it was."""
        key, record, fenced = offer.key, offer.record, offer.fenced
        if not self._may_admit(offer):
            self.counters.entries_refused += 1
            return False
        read_until = self._read_bounds.until_s(offer.read_started_s)
        if self._holds_newer(offer, read_until):
            return False
        offset_s = self.server_clocks[key.shard].offset_s
        expires = deadline_s(record.expires_ms, offset_s, offer.read_started_s)
        if offer.l1_ttl_s != INF:
            expires = min(expires, grid(self.clock() + offer.l1_ttl_s, offer.l1_ttl_s))
        fallback_s = offer.fallback_s
        if fallback_s and (not record.may_be_fallback or not fenced or self.may_predate_lost_guards(key.shard, record)):
            fallback_s = 0.0
        if not fenced:
            expires = min(expires, read_until)
        soft_until = deadline_s(record.soft_ms, offset_s, offer.read_started_s)
        extra = offer.details(expires, soft_until, fallback_s)
        size = entry_bytes(key, offer.size_bytes(self.l1.weights, extra))
        group = self.groups.joined(key, leased=fenced, tags=record.tags)
        fast_until, seq = fast_until_s(extra, expires), shared_int(record.seq)
        self.l1.put(Entry(key.l1, offer.value, group, fast_until, seq, read_until, expires, size, extra))
        return True

    def _may_admit(self, offer: Offer) -> bool:
        if not offer.fenced and not self.keep_without_l2:
            return False
        if self.blocked is not None and self.blocked.covers(offer.key, offer.record.tags):
            return False
        return self._admits(self.shards[offer.key.shard], offer.key, offer.record, offer.reservation)

    def _holds_newer(self, offer: Offer, read_until: float) -> bool:
        present, seq = self.l1.entries.get(offer.key.l1), offer.record.seq
        if present is None or present.extra is ABSENT:
            return False
        if present.seq > seq:
            return True
        # Of two loads without L2 the one that began later is the newer, and lives longer, whichever ends first.
        later = not offer.fenced and present.seq == seq and present.read_until > read_until
        return later and self.trusted(offer.key) is not None

    def may_predate_lost_guards(self, shard: int, record: Record) -> bool:
        """Whether a record was read from the source while a guard may have stood that a takeover has lost. Nobody knows
        what that guard covered, so the record is no fallback. Of another epoch than this node's the node does not know
        when it began: yes."""
        return record.epoch != self.shards[shard].epoch or record.created_ms < self._lost_guards_settled_ms(shard)

    def _lost_guards_settled_ms(self, shard: int) -> float:
        """When the guards that a takeover has lost have ended, and another D is over, on the L2 server's clock; 0: no
        guard can have been lost."""
        largest = self.largest[shard]
        if not largest.guard_ms or not self.born_us[shard]:
            return 0.0
        return self.born_us[shard] / 1000 + largest.guard_ms + largest.bound_ms

    def lost_guards_settled_s(self, shard: int) -> float:
        """The same on this node's clock, at the earliest."""
        until_ms = self._lost_guards_settled_ms(shard)
        return self.server_clocks[shard].earliest_s(until_ms / 1000) if until_ms else NEVER

    @staticmethod
    def _admits(view: Shard, key: Key, record: Record, reservation: Reservation) -> bool:
        # Nothing was told meanwhile: the usual case.
        if reservation.drops == view.drop_count and not view.invalidated and not view.low:
            return record.epoch == view.epoch == reservation.epoch
        scopes = (*key.scopes, *record.tags) if view.invalidated or view.doubts.scopes else ()
        return view.admits(reservation, key.l1, key.family.bucket, scopes, record.epoch, record.seq, key.everywhere)

    def admit_absent(self, key: Key, reservation: Reservation, read_started_s: float) -> None:
        """Remember for D at most that L2 holds nothing under the key. A fill publishes nothing, hence the limit."""
        view = self.shards[key.shard]
        if self.blocked is not None and self.blocked.covers(key):
            return
        if self._kept_as_fallback(key, self.clock()) is not None:
            return
        scopes = key.scopes if view.invalidated or view.doubts.scopes else ()
        bucket, everywhere = key.family.bucket, key.everywhere
        if view.admits(reservation, key.l1, bucket, scopes, view.epoch, reservation.applied, everywhere):
            until = self._read_bounds.until_s(read_started_s)
            group = self.groups.joined(key, leased=True, tags=())
            seq = shared_int(reservation.applied)
            self.l1.put(Entry(key.l1, None, group, NEVER, seq, until, until, entry_bytes(key), ABSENT))

    def sweep(self) -> Iterator[int]:
        """Take retired and expired entries out of memory, a millisecond a step."""
        self.groups.untidy = False
        now = self.clock()

        def dead(entry: Entry) -> bool:
            if not self.groups.holds(entry):
                return self._replaced(entry)
            extra = details(entry)
            keep = NEVER if extra is None else extra.fallback_until
            return now >= entry.expires and now >= keep

        return self.l1.sweep(dead, self.clock)

    # -- figures -------------------------------------------------------------------------------------------------

    def shard_stats(self, now_s: float) -> tuple[ShardStats, ...]:
        """Every shard as this node sees it."""
        return tuple(stats_of(view, now_s, self.largest[view.index].bound_ms / 1000) for view in self.shards)
