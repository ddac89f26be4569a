"""A shard of L2 in the memory of one process: the twin of the scripts, for tests, trials and `memory://NAME`.

It does what the scripts do, synchronously, so it also serves as L2 in model checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from cachebus.core.ports import (
    SILENT_S,
    Caller,
    Change,
    FillLeaseOutcome,
    FillLeaseReply,
    KeyFacts,
    LogEntry,
    NodesReply,
    ProbeReply,
    ReadReply,
)
from cachebus.core.requests import FallbackKind, FillLeaseRequest, FillRequest, GuardRequest, WriteRequest
from cachebus.keys.key import ALL_TENANTS, Key, guard_name
from cachebus.l2.memory_fill_lease import MemoryFillLease
from cachebus.l2.memory_history import MemoryHistory
from cachebus.wire import event as events
from cachebus.wire import record as records
from cachebus.wire.record import FLAG_NOT_FOUND, FLAGS_AT, Record

REQUEST_S = 60.0
GUARDS_MAX = 1000
"""On one name."""
GUARDS_UNSWEPT = 64
"""What few have left is not swept while others guard."""
INT64 = 1 << 63


class MemoryShard(MemoryHistory):
    """The operations on one shard; each is one atomic step."""

    def hidden(self, record: Record, key: Key) -> bool:
        """Whether a record of the key may not be believed."""
        return record.epoch != self.epoch or self.invalidated.hide(
            record.seq, key.family.bucket, (*key.scopes, *record.tags)
        )

    def stored(self, key: Key) -> tuple[bytes, Record] | None:
        """The key's record if there is one that may be believed, expired or not."""
        data, until_s = self.records.get(key.l2, (b"", 0.0))
        if until_s <= self.clock():
            self.records.pop(key.l2, None)
            return None
        try:
            record = records.parse(data)  # as the scripts do
        except records.CorruptRecord:
            return None
        return None if self.hidden(record, key) else (data, record)

    def expired(self, record: Record) -> bool:
        """Whether a record's hard expiry is over."""
        return 0 < record.expires_ms <= self.clock() * 1000

    def forget_keys(self, keys: Sequence[Key]) -> None:
        """Records and fill leases of these keys go."""
        for key in keys:
            self.records.pop(key.l2, None)
            self.fill_leases.pop(key.l2, None)

    @property
    def born_us(self) -> int:
        """When the epoch began; 0 of the first, which nothing was before."""
        return 0 if self.born_s == float("-inf") else int(self.born_s * 1_000_000)

    def lost_guards_end_ms(self, own_ms: int = 0) -> int | None:
        """When all guards have ended that a takeover has lost; None once they have. What is stored until then may be
        from before a commit that nobody tells of. `own_ms`: the longest that the caller has heard of."""
        most_ms, now_s = max(self.guard_ms, own_ms), self.clock()
        if not most_ms or now_s >= self.born_s + most_ms / 1000:
            return None
        return int(min(self.born_s, now_s) * 1000) + most_ms

    def _px_until(self, end_ms: int | None, px_ms: int) -> int:
        """How long what should last for `px_ms` (0: for ever) may last where it is to end by then."""
        left_ms = px_ms if end_ms is None else max(end_ms - int(self.clock() * 1000), 1)
        return min(px_ms or left_ms, left_ms)

    def put(self, key: Key, record: Record, px_ms: int, caller: Caller) -> int:
        """Store a record; gives when it expires where it must expire by the end of lost guards, else 0."""
        latest_ms, expires_ms = self.lost_guards_end_ms(caller.largest.guard_ms), 0
        px_ms = self._px_until(latest_ms, px_ms)
        if latest_ms is not None and not 0 < record.expires_ms <= latest_ms:
            expires_ms = latest_ms
            record.set_position(record.epoch, record.seq, expires_ms=expires_ms)
        self.records[key.l2] = (record.encode(key.l2), self.clock() + px_ms / 1000 if px_ms else float("inf"))
        return expires_ms

    def note_contexts(self, key: Key) -> None:
        """From now on there may be records of the key's type in contexts, if it is in any."""
        if key.everywhere:
            self.in_contexts.add(key.family.data_type)

    def guarded_ms(self, key: Key, tags: Sequence[str]) -> int | None:
        """For how long the guard that ends first still stands on a key, its scopes or these tags; None without one."""
        now_s = self.clock()
        ends = [
            end
            for name in (guard_name(key), *key.scopes, *tags)
            for end in self.guards.get(name, {}).values()
            if end > now_s
        ]
        return ceil((min(ends) - now_s) * 1000) if ends else None

    def was_guarded(self, record: Record) -> bool:
        """Whether a guard may have stood on a tag of a record since its load began, be it over by now."""
        since_s = record.created_ms / 1000
        if self.guarded_until_s <= since_s or not record.tags:
            return False
        return self.swept_s > since_s or any(
            end > since_s for tag in record.tags for end in self.guards.get(tag, {}).values()
        )

    def _standing(self, tokens: Mapping[str, float], without: str) -> dict[str, float]:
        """Those of a name's tokens that stand, without one of them; of what is swept the latest end is noted."""
        now_s, others = self.clock(), {token: end for token, end in tokens.items() if token != without}
        self.swept_s = max([self.swept_s, *(end for end in others.values() if end <= now_s)])
        return {token: end for token, end in others.items() if end > now_s}

    # -- the scripts ------------------------------------------------------------------------------------------------

    def probe(self, caller: Caller, with_invalidated: bool) -> ProbeReply:
        """See `Store.probe`."""
        self.attend(caller, "" if with_invalidated else None)
        self._note_largest(caller)
        now_s = self.clock()
        silent = [node for node, row in self.rows.items() if row.at_us < (now_s - SILENT_S) * 1_000_000]
        for node in () if with_invalidated else silent:
            del self.rows[node]
            self.nodes_name = self.new_epoch()
        return ProbeReply(
            self.epoch,
            self.seq,
            int(now_s * 1_000_000),
            self.invalidated.given() if with_invalidated else None,
            self.nodes_name,
            self.bound_ms,
            self.guard_ms,
            self.born_us,
            self.keeps_without_l2,
        )

    def nodes(self, caller: Caller) -> NodesReply:
        """See `Store.nodes`."""
        self.attend(caller)
        self.bound_ms, self.keeps_without_l2 = (
            max(self.bound_ms, caller.largest.bound_ms),
            self.keeps_without_l2 or caller.largest.keeps_without_l2,
        )
        return NodesReply(self.epoch, self.nodes_name, self.bound_ms, dict(self.rows), self.keeps_without_l2)

    def forget(self, caller: Caller, node: str, lives: bool) -> bool:
        """See `Store.forget`."""
        self.arrive(caller)
        gone = self.rows.pop(node, None) is not None
        if gone and lives:
            self.nodes_name = self.new_epoch()
        return gone

    def get(self, key: Key) -> bytes | None:
        """See `Store.get`."""
        data, until_s = self.records.get(key.l2, (None, 0.0))
        return data if until_s > self.clock() else None

    def read(self, caller: Caller, keys: Sequence[Key]) -> ReadReply:
        """See `Store.read`."""
        found: dict[str, bytes | None] = {}
        for bucket in dict.fromkeys(key.family.bucket for key in keys) or [None]:
            self.attend(caller, bucket)
            hits = {key.l2: self.stored(key) for key in keys if key.family.bucket == bucket}
            found.update((name, hit[0] if hit else None) for name, hit in hits.items())
        return ReadReply(self.epoch, self.seq, [found[key.l2] for key in keys])

    def fill_lease(self, key: Key, caller: Caller, request: FillLeaseRequest) -> FillLeaseReply:
        """See `Store.fill_lease`."""
        token, px_ms, refresh, fallback, tags, unreadable = request
        self.attend(caller, key.family.bucket)
        left_ms = self.guarded_ms(key, tags)
        if left_ms is not None:
            return FillLeaseReply(self.epoch, self.seq, FillLeaseOutcome.GUARDED, None, left_ms)
        now_s, hit, held = self.clock(), self.stored(key), self.fill_leases.get(key.l2)
        data, old = (hit[0], self.expired(hit[1])) if hit else (None, False)
        if hit and not refresh and not old and hit[1].version != unreadable:
            return FillLeaseReply(self.epoch, self.seq, FillLeaseOutcome.HIT, data, 0)
        if held and held.epoch == self.epoch and held.until_s > now_s and (held.cools_down or held.token != token):
            left_ms = int((held.until_s - now_s) * 1000)
            of_use = data if hit and not hit[1].not_found else None
            if not held.cools_down:
                held.waited = True
                sent = (
                    b"" if fallback is FallbackKind.OWN else of_use if fallback is FallbackKind.RECORD and old else None
                )
                return FillLeaseReply(self.epoch, self.seq, FillLeaseOutcome.WAIT, sent if of_use else None, left_ms)
            if fallback is FallbackKind.OWN or (fallback is FallbackKind.RECORD and of_use):
                return FillLeaseReply(self.epoch, self.seq, FillLeaseOutcome.COOLING_DOWN, data, left_ms)
        lasts_ms = self._px_until(self.lost_guards_end_ms(), px_ms)
        self.fill_leases[key.l2] = MemoryFillLease(self.epoch, token, now_s + lasts_ms / 1000)
        self.note_contexts(key)
        return FillLeaseReply(self.epoch, self.seq, FillLeaseOutcome.GRANTED, data, 0)

    def holds(self, key: Key, token: str) -> bool:
        """Whether the token's fill lease still stands."""
        held = self.fill_leases.get(key.l2)
        return (
            held is not None
            and not held.cools_down
            and (held.epoch, held.token) == (self.epoch, token)
            and held.until_s > self.clock()
        )

    def hold(self, key: Key, token: str, *, px_ms: int, cools_down: bool = False) -> None:
        """See `Store.extend`, `Store.cool_down` and `Store.release` (px 0)."""
        if self.is_lost(Caller("", 0, b""), None) or not self.holds(key, token):
            return
        if cools_down:
            self.end_lease(key)
            self.fill_leases[key.l2] = failed = MemoryFillLease(self.epoch, token, self.clock() + px_ms / 1000)
            failed.cools_down = True
        elif px_ms:
            lasts_ms = self._px_until(self.lost_guards_end_ms(), px_ms)
            self.fill_leases[key.l2].until_s = self.clock() + lasts_ms / 1000
        else:
            self.end_lease(key)

    def end_lease(self, key: Key) -> None:
        """A fill lease goes, and who waits for it is woken."""
        if self.fill_leases.pop(key.l2).waited:
            self.publish(events.WAKE + key.l1.encode())

    def fill(self, key: Key, caller: Caller, request: FillRequest) -> Change:
        """See `Store.fill`."""
        token, record, px_ms, over = request
        self.arrive(caller, key.family.bucket)
        if not self.holds(key, token):
            return Change(self.epoch, self.seq, False)
        self.end_lease(key)
        now = self.stored(key) if over else None
        refused = self.hidden(record, key) or self.guarded_ms(key, record.tags) is not None or self.was_guarded(record)
        if refused or (now is not None and now[1].version != over):
            return Change(self.epoch, self.seq, False)
        return Change(self.epoch, self.seq, True, expires_ms=self.put(key, record, px_ms, caller))

    def invalidate(self, caller: Caller, keys: Sequence[Key], scopes: Sequence[str], body: bytes) -> Change:
        """See `Store.invalidate`."""
        self.arrive(caller)
        self.forget_keys(keys)
        header = self.announce(scopes, body)
        return Change(self.epoch, self.seq, True, header, bound_ms=self.bound_ms)

    def guard(self, caller: Caller, request: GuardRequest, body: bytes) -> Change:
        """See `Store.guard`."""
        keys, scopes, token, px_ms = request
        self.arrive(caller)
        now_s = self.clock()
        if self.guarded_until_s <= now_s and self.guards:
            self.guards, self.swept_s = {}, max(self.swept_s, self.guarded_until_s)
        if len(self.guards) > GUARDS_UNSWEPT:
            kept = {name: self._standing(tokens, "") for name, tokens in self.guards.items()}
            self.guards = {name: tokens for name, tokens in kept.items() if tokens}
        self.guarded = len(self.guards)
        guarded = (*map(guard_name, keys), *scopes)
        standing = {name: self._standing(self.guards.get(name, {}), token) for name in guarded}
        most = max(map(len, standing.values()), default=0)
        if px_ms and (len(self.guards) + len(guarded) > self.max_invalidated_scopes or most >= GUARDS_MAX):
            return Change(self.epoch, self.seq, False)
        for name, tokens in standing.items():
            self.guards.pop(name, None)
            if px_ms:
                tokens[token] = now_s + px_ms / 1000
            if tokens:
                self.guards[name] = tokens
        self.guarded, self.guarded_until_s = len(self.guards), max(self.guarded_until_s, now_s + px_ms / 1000)
        return self.invalidate(caller, keys, scopes, body)

    def write(self, key: Key, caller: Caller, request: WriteRequest) -> Change:
        """See `Store.write`."""
        record, px_ms, body, others, scopes, if_absent, over = request
        self.arrive(caller, key.family.bucket)
        guarded = self.guarded_ms(key, record.tags) is not None
        if if_absent or over:
            now = self.stored(key)
            is_valid = now and not self.expired(now[1]) and not now[0][FLAGS_AT] & FLAG_NOT_FOUND
            fits = bool(now and is_valid and now[1].version == over) if over else not is_valid
            if guarded or not fits:
                return Change(self.epoch, self.seq, False, bound_ms=self.bound_ms)
        self.forget_keys([key, *others])
        header = self.announce(scopes, body)
        expires_ms = 0
        if not guarded:
            record.set_position(self.epoch, self.seq)
            expires_ms = self.put(key, record, px_ms, caller)
            self.note_contexts(key)
        return Change(self.epoch, self.seq, not guarded, header, expires_ms, self.bound_ms)

    def counter(self, key: Key, caller: Caller, amount: int, request: str, expires_ms: int) -> int | None:
        """See `Store.counter`."""
        self.arrive(caller)
        now_s, asked = self.clock(), (key.l2, request)
        value, until_s = self.counters.get(key.l2, (0, float("inf")))
        if until_s <= now_s:  # what its requests were answered goes with it
            value, until_s = 0, float("inf")
            self.requests = {name: r for name, r in self.requests.items() if name[0] != key.l2}
        answered = self.requests.get(asked)
        if request and answered and answered[1] > now_s:
            return answered[0]
        if not amount:
            return value
        value += amount
        if not -INT64 <= value < INT64:
            return None
        if expires_ms and until_s == float("inf"):
            until_s = now_s + expires_ms / 1000
        self.counters[key.l2] = (value, until_s)
        if request:
            self.requests = {name: r for name, r in self.requests.items() if r[1] > now_s}
            self.requests[asked] = (value, now_s + REQUEST_S)
        return value

    def log(self, after: int, count: int) -> list[LogEntry]:
        """See `Store.log`."""
        newer = sorted(seq for seq in self.messages if seq > after)[:count]
        return [LogEntry(seq, self.messages[seq]) for seq in newer]

    def inspect(self, key: Key) -> KeyFacts:
        """See `Store.inspect`."""
        now_s, data, held = self.clock(), self.get(key), self.fill_leases.get(key.l2)
        try:
            tags = () if data is None else records.parse(data).tags
        except records.CorruptRecord:
            tags = ()
        own, marks, low = (*key.scopes, *tags), self.invalidated.by_bucket, self.invalidated.low
        buckets = key.family.bucket, ALL_TENANTS
        ends = {
            name: sorted(int(end * 1_000_000) for end in self.guards.get(name, {}).values() if end > now_s)
            for name in (guard_name(key), *own)
        }
        letter = (
            "" if held is None or held.until_s <= now_s else "r" if held.cools_down else "w" if held.waited else "h"
        )
        return KeyFacts(
            server_us=int(now_s * 1_000_000),
            epoch=self.epoch,
            seq=self.seq,
            is_over=self.meta_server != self.server,
            bound_ms=self.bound_ms,
            record=data,
            fill_lease=f"{letter}{held.epoch.decode()}{held.token}".encode() if held is not None and letter else b"",
            invalidated={n: its[n] for b in buckets for its in [marks.get(b, {})] for n in own if n in its},
            low={bucket: low[bucket] for bucket in buckets if low.get(bucket)},
            guards={name: left for name, left in ends.items() if left},
            rows=dict(self.rows),
            born_us=self.born_us,
            guard_ms=self.guard_ms,
        )
