"""This node's state: its view of every shard, and what L1 holds under that view.

Nothing here awaits. An event is applied, a value admitted, or an entry looked at, in one step. What entries share, and
why dropping a scope costs the same at any size, is said in `groups`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Final

from cachebus.base.clock import Clock, OtherClock
from cachebus.base.log import logger
from cachebus.core.admission import Offer, ReadBounds, deadline_s, entry_bytes, fast_path_until_s
from cachebus.core.answers import BEYOND, INF, NEVER, Heard, HeardSoFar, Probed, Reservation
from cachebus.core.applied import AppliedHook
from cachebus.core.blocked import Blocked
from cachebus.core.details import ABSENT, details
from cachebus.core.figures import stats_of
from cachebus.core.groups import Groups
from cachebus.core.membership import MembershipView
from cachebus.core.ports import Caller, Change, Invalidated, Largest, ProbeReply
from cachebus.core.setup import NodeSetup
from cachebus.core.shard import Shard
from cachebus.core.telling import LeaseLapses, tell_invalidated
from cachebus.keys.key import Key, is_scope, scopes_of
from cachebus.l1 import L1, Entry, grid, shared_int
from cachebus.observe import Counters, ShardStats
from cachebus.observe.hooks import Hooks
from cachebus.wire import event as events
from cachebus.wire.record import Record

DOUBT_S: Final = 60.0
"""For so long at least it is doubted what was held, or had begun, before an invalidation of unknown outcome."""


class Node:
    """One node. Its id is unique in the fleet and made anew for every cache."""

    def __init__(self, setup: NodeSetup, l1: L1, clock: Clock, counters: Counters, hooks: Hooks | None = None) -> None:
        shards, bound_s = setup.shards, setup.bound_s
        self.id = f"{setup.name}-{secrets.token_hex(4)}"
        self.clock = clock
        self.bound_s = bound_s
        self.about = setup.about
        """What this node says of itself."""
        self.largest = [Largest.of(self.about)] * shards
        """What this node has heard of the fleet, by shard."""
        self.keep_without_l2 = setup.keep_without_l2
        """Whether what L2 did not confirm may be kept, for D."""
        self._read_bounds = ReadBounds(bound_s)
        self.shards = [Shard(i, bound_s, max_invalidated_scopes=setup.max_invalidated_scopes) for i in range(shards)]
        self.l1 = l1
        self.counters = counters
        self.server_clocks = [OtherClock() for _ in self.shards]
        """The L2 servers' by shard: by them records expire. Those of a cluster are several machines'."""
        self.born_us = [0] * shards
        """When the shard's epoch began on its L2 server's clock; 0: unknown."""
        self.blocked: Blocked | None = None
        """What may not be believed, while this node has invalidations that L2 has not heard of."""
        self.memberships = [MembershipView() for _ in range(shards)]
        """What is known of the nodes' rows, by shard."""
        self.applied_hook = AppliedHook(clock)
        self.hooks = hooks or Hooks()
        """Who wants to be told of what happens here."""
        self.lapses = LeaseLapses(self.shards, self.hooks)
        self.groups = Groups(self.shards, counters)
        """What L1's entries share."""

    def caller(self, index: int) -> Caller:
        """How this node introduces itself to L2."""
        shard = self.shards[index]
        return Caller(self.id, shard.applied, shard.epoch, self.about, self.largest[index], shard.former_epochs)

    def server_now_s(self, index: int) -> float:
        """What the clock of the shard's L2 server shows now, as far as is known."""
        return self.clock() + self.server_clocks[index].offset_s

    def _spread_lease(self, index: int) -> None:
        self.groups.spread(index, self.shards[index].valid_until_s)

    # -- what arrives --------------------------------------------------------------------------------------------

    def hear(self, index: int, event: events.Event) -> Heard:
        """Apply an event of the bus or the log. One of another epoch changes nothing: only a probe moves a node.

        `CorruptEvent`, and nothing is changed, for one that names scopes of no known shape: counted as applied, it
        would hide that what it replaced is still served."""
        if not all(map(is_scope, event.scopes)):
            raise events.CorruptEvent("it names a scope of no known shape")
        shard = self.shards[index]
        before = shard.applied
        heard = shard.hear(event.epoch, event.seq)
        if heard is Heard.OLD:
            self.counters.events_repeated += 1
            return heard
        if heard is Heard.FOREIGN or heard is Heard.LEFT:
            self.counters.events_foreign += 1
            return heard
        self.counters.events_applied += 1
        self.counters.gaps += heard is Heard.AHEAD
        remembered, passing = self.groups.split(index, event.scopes) if event.left_out else (event.scopes, ())
        raised = shard.drop(event.seq, event.keys, remembered, passing=passing, low=event.low)
        self._drop_keys(event.keys, event.seq)
        self.counters.watermarks_raised += raised
        if raised:
            self.groups.retire_all(index)
        elif event.scopes:
            self.groups.retire(index, self.groups.touched(index, event.scopes))
        self._spread_lease(index)
        if shard.applied != before:
            self.applied_hook.say(shard)
        if self.hooks.invalidated:
            tell_invalidated(self.hooks, index, event)
        return heard

    def wrote(self, index: int, change: Change, body: bytes, part: events.WritePart) -> None:
        """Apply an own write, of which L2 has just replied, before its caller is told. In another epoch than this
        node's nothing that it holds of the shard may be believed: the write must hold here at once."""
        if not change.event_header:
            return
        if change.epoch != self.shards[index].epoch:
            self.void(index, "epoch")
            return
        try:
            event = events.with_header(change.event_header, body, [part])
        except events.CorruptEvent:
            self.counters.events_corrupt += 1
            self.void(index, "corrupt")
        else:
            self.hear(index, event)

    def _drop_keys(self, keys: Sequence[str], seq: int) -> None:
        entries = self.l1.entries
        for key in keys:
            entry = entries.get(key)
            if entry is not None and entry.seq < seq:
                self.l1.remove(key)

    def probed(self, index: int, reply: ProbeReply, sent_at_s: float, now_s: float) -> Probed:
        """Take in a probe's reply; with the invalidated scopes it also moves the node into the reply's epoch, or over a
        gap."""
        shard = self.shards[index]
        self.answered(index, reply, sent_at_s, now_s)
        probed = shard.probed(reply.epoch, reply.seq, sent_at_s)
        self._spread_lease(index)
        return probed

    def answered(self, index: int, reply: ProbeReply, sent_at_s: float, now_s: float) -> None:
        """What any probe's reply tells: the server's time, and whether the lease had run out by then."""
        shard = self.shards[index]
        if shard.epoch != reply.epoch:
            self.server_clocks[index] = OtherClock()  # perhaps another machine's now
        self.server_clocks[index].learn(reply.server_us / 1e6, sent_at_s, now_s)
        self.memberships[index].saw(reply.nodes_name, now_s)
        known = self.largest[index]
        self.largest[index] = Largest(
            max(reply.bound_ms, known.bound_ms),
            max(reply.guard_ms, known.guard_ms),
            reply.keeps_without_l2 or known.keeps_without_l2,
        )
        if shard.valid_until_s < now_s and (shard.epoch == reply.epoch or shard.valid_until_s > NEVER):
            self.counters.lease_lapses += 1
            self.lapses.look(index, now_s)
            logger.info(
                "shard {}: its lease had lapsed {:.3f} s before L2 answered", index, now_s - shard.valid_until_s
            )

    def begin_epoch(
        self, index: int, reply: ProbeReply, sent_at_s: float, cause: str, asked: HeardSoFar | None = None
    ) -> None:
        """Begin a shard anew from a probe's reply with the invalidated scopes: L1 is dropped, and whatever is under way
        is overtaken. `asked`: what `Shard.begin_asking` gave when the probe was sent."""
        shard = self.shards[index]
        if shard.epoch == reply.epoch:
            self.counters.events_flushed += shard.unheard(reply.seq)
        self.void(index, cause)
        shard.begin_epoch(reply.epoch, reply.seq, reply.invalidated or Invalidated({}, {}), sent_at_s, asked)
        self.born_us[index] = reply.born_us
        self._spread_lease(index)
        self.applied_hook.say(shard)

    def void(self, index: int, cause: str) -> None:
        """Drop a shard's L1, overtake everything under way, give up the lease."""
        self.shards[index].void()
        self.groups.end_life(index)
        self._spread_lease(index)
        self.counters.flushed(cause)
        if self.hooks.flushed and cause != "start":  # nothing was held then
            self.hooks.tell("flushed", index, cause)

    def forget(self, index: int, keys: Sequence[Key], scopes: Sequence[str] = ()) -> None:
        """Drop keys, and what is in scopes, of which nothing is known for sure: after a write of unknown outcome."""
        shard = self.shards[index]
        shard.drop(BEYOND, [key.l1 for key in keys], (), passing=scopes)
        for key in keys:
            self.l1.remove(key.l1)
        if scopes and not shard.doubts.note(scopes, shard.drop_count, self.clock()):
            self.void(index, "unknown")
        elif scopes:
            self.groups.retire(index, self.groups.touched(index, scopes))

    def settle_doubts(self, swept_s: float) -> None:
        """All that was held has been looked at since then: older doubts concern only loads that last very long."""
        for shard in self.shards:
            shard.doubts.settle(min(swept_s - DOUBT_S, shard.fresh_as_of_s))

    def block(self, index: int, keys: Sequence[Key], scopes: Sequence[str]) -> None:
        """Believe nothing of these, whoever vouches for it, until `unblock`: L2 has yet to hear of their end."""
        if self.blocked is None:
            self.blocked = Blocked()
        self.blocked.add(index, keys, scopes)

    def unblock(self, index: int, keys: Sequence[Key], scopes: Sequence[str]) -> None:
        """L2 has heard of these once."""
        if self.blocked is not None:
            self.blocked.remove(index, keys, scopes)
            self.blocked = self.blocked or None

    def is_blocked(self, key: Key, tags: Sequence[str] = ()) -> bool:
        """Whether a value under this key, with these tags, may not be believed: an invalidation of it waits for L2."""
        return self.blocked is not None and self.blocked.covers(key, tags)

    # -- L1 ------------------------------------------------------------------------------------------------------

    def take_away(self, key: Key, seq: int, *, of_any_load: bool = False) -> None:
        """Drop what is held of a key, unless it is of a later time than this seq. What was loaded without L2 stays: it
        ends within D of its load, and is no fallback. `of_any_load`: that goes, too."""
        entry = self.l1.entries.get(key.l1)
        if entry is not None and entry.seq <= seq and (of_any_load or entry.group.fenced):
            self.l1.remove(key.l1)

    def end_fallback(self, key: Key, seq: int) -> None:
        """What is held of a key is no fallback once it has expired, unless it is of a later time than this seq.
        Until then it is served on: without L2, who reads past memory must not have all others ask the source."""
        entry = self.l1.entries.get(key.l1)
        extra = None if entry is None else details(entry)
        if entry is not None and extra is not None and not extra.absent and entry.seq <= seq:
            extra.fallback_until_s = NEVER

    def peek(self, key: Key, now_s: float) -> Entry | None:
        """The key's entry if it may be believed and served now; the whole serving rule, behind the fast path."""
        entry = self.trusted(key)
        if entry is None or not self.shards[key.shard].serves(now_s, entry.expires_s, entry.read_until_s):
            return None
        return entry

    def fallback(self, key: Key, now_s: float) -> Entry | None:
        """An expired entry that may be served now while the source fails."""
        entry = self._kept_as_fallback(key, now_s)
        return entry if entry is not None and self.shards[key.shard].serves(now_s, INF, entry.read_until_s) else None

    def _kept_as_fallback(self, key: Key, now_s: float) -> Entry | None:
        """An entry that is kept for when the source fails, be it served now or not. "Not found" is no value."""
        entry = self.trusted(key)
        extra = None if entry is None else details(entry)
        return None if extra is None or extra.not_found or now_s >= extra.fallback_until_s else entry

    def trusted(self, key: Key) -> Entry | None:
        """The key's entry unless a flush, scope or tag has replaced it since; moves it to the live group."""
        entry = self.l1.entries.get(key.l1)
        if entry is None:
            return None
        group = entry.group
        live = self.groups.of(key.shard, key.family.data_type, fenced=group.fenced)
        if group is live:
            return entry
        if self._replaced(entry):
            self.l1.remove(key.l1)
            return None
        entry.group = live
        return entry

    def stands(self, entry: Entry) -> bool:
        """Whether no flush, scope or tag has replaced an entry, for who only looks: nothing moves, or is counted."""
        return self.groups.holds(entry) or not self._replaced(entry, counted=False)

    def _replaced(self, entry: Entry, *, counted: bool = True) -> bool:
        group = entry.group
        if group.generation != self.groups.lives[group.shard]:
            return True
        shard = self.shards[group.shard]
        if not shard.invalidated and not shard.low and not shard.doubts.scopes:
            return False
        extra = details(entry)
        bucket, scopes = scopes_of(entry.key)
        scopes = scopes if extra is None else (*scopes, *extra.tags)
        if shard.below(entry.seq, bucket):
            self.counters.lost_to_watermarks += counted
            return True
        return shard.hides(entry.seq, bucket, scopes) or shard.doubts.cover(scopes, group.born_at_drop)

    def admit(self, offer: Offer) -> bool:
        """Let what is offered into L1, if nothing has overtaken it. Gives whether it was."""
        key, record, fenced = offer.key, offer.record, offer.fenced
        if not self._may_admit(offer):
            self.counters.entries_refused += 1
            return False
        read_until_s = self._read_bounds.until_s(offer.read_started_s)
        if self._holds_newer(offer, read_until_s):
            return False
        offset_s = self.server_clocks[key.shard].offset_s
        expires_s = deadline_s(record.expires_ms, offset_s, offer.read_started_s)
        if offer.l1_ttl_s != INF:
            expires_s = min(expires_s, grid(self.clock() + offer.l1_ttl_s, offer.l1_ttl_s))
        fallback_s = offer.fallback_s
        if fallback_s and (not record.may_be_fallback or not fenced or self.may_predate_lost_guards(key.shard, record)):
            fallback_s = 0.0
        if not fenced:
            expires_s = min(expires_s, read_until_s)
        soft_until_s = deadline_s(record.soft_ms, offset_s, offer.read_started_s)
        extra = offer.details(expires_s, soft_until_s, fallback_s, offset_s)
        size = entry_bytes(key, offer.size_bytes(self.l1.weights, extra))
        group = self.groups.joined(key, fenced=fenced, tags=record.tags)
        fast_until_s, seq = fast_path_until_s(extra, expires_s), shared_int(record.seq)
        beside = extra or offer.created_s(offset_s)
        self.l1.put(Entry(key.l1, offer.value, group, fast_until_s, seq, read_until_s, expires_s, size, beside))
        return True

    def _may_admit(self, offer: Offer) -> bool:
        if not offer.fenced and not self.keep_without_l2:
            return False
        if self.is_blocked(offer.key, offer.record.tags):
            return False
        return self._admits(self.shards[offer.key.shard], offer.key, offer.record, offer.reservation)

    def _holds_newer(self, offer: Offer, read_until_s: float) -> bool:
        present, seq = self.l1.entries.get(offer.key.l1), offer.record.seq
        if present is None or present.extra is ABSENT:
            return False
        if present.seq > seq:
            return True
        # Of two loads without L2 the one that began later is the newer, and lives longer, whichever ends first.
        later = not offer.fenced and present.seq == seq and present.read_until_s > read_until_s
        return later and self.trusted(offer.key) is not None

    def may_predate_lost_guards(self, index: int, record: Record) -> bool:
        """Whether a record was read from the source while a guard may have stood that a takeover has lost: it is no
        fallback, as nobody knows what that covered. When another epoch than this node's began is unknown: yes."""
        return record.epoch != self.shards[index].epoch or record.created_ms < self._lost_guards_over_ms(index)

    def _lost_guards_over_ms(self, index: int) -> float:
        """When the guards that a takeover has lost have ended, and another D is over, on the L2 server's clock; 0: no
        guard can have been lost."""
        largest = self.largest[index]
        if not largest.guard_ms or not self.born_us[index]:
            return 0.0
        return self.born_us[index] / 1000 + largest.guard_ms + largest.bound_ms

    def lost_guards_over_s(self, index: int) -> float:
        """The same on this node's clock, at the earliest."""
        until_ms = self._lost_guards_over_ms(index)
        return self.server_clocks[index].earliest_s(until_ms / 1000) if until_ms else NEVER

    @staticmethod
    def _admits(shard: Shard, key: Key, record: Record, reservation: Reservation) -> bool:
        # Nothing was told meanwhile: the usual case.
        if reservation.drops == shard.drop_count and not shard.invalidated and not shard.low:
            return record.epoch == shard.epoch == reservation.epoch
        scopes = (*key.scopes, *record.tags) if shard.invalidated or shard.doubts.scopes else ()
        return shard.admits(reservation, key, scopes, record.epoch, record.seq)

    def admit_absent(self, key: Key, reservation: Reservation, read_started_s: float) -> None:
        """Remember for D at most that L2 holds nothing under the key. A fill publishes nothing, hence the limit."""
        shard = self.shards[key.shard]
        if self.is_blocked(key):
            return
        if self._kept_as_fallback(key, self.clock()) is not None:
            return
        scopes = key.scopes if shard.invalidated or shard.doubts.scopes else ()
        if shard.admits(reservation, key, scopes, shard.epoch, reservation.applied):
            until_s = self._read_bounds.until_s(read_started_s)
            group = self.groups.joined(key, fenced=True, tags=())
            seq = shared_int(reservation.applied)
            self.l1.put(Entry(key.l1, None, group, NEVER, seq, until_s, until_s, entry_bytes(key), ABSENT))

    def sweep(self) -> Iterator[int]:
        """Take retired and expired entries out of memory, a millisecond a step."""
        self.groups.untidy = False
        now_s = self.clock()

        def dead(entry: Entry) -> bool:
            if not self.groups.holds(entry):
                return self._replaced(entry)
            extra = details(entry)
            keep_until_s = NEVER if extra is None else extra.fallback_until_s
            return now_s >= entry.expires_s and now_s >= keep_until_s

        return self.l1.sweep(dead, self.clock)

    # -- figures -------------------------------------------------------------------------------------------------

    def shard_stats(self, now_s: float) -> tuple[ShardStats, ...]:
        """Every shard as this node sees it."""
        return tuple(stats_of(shard, now_s, self.largest[shard.index].bound_ms / 1000) for shard in self.shards)
