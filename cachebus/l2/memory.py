"""A shard of L2 in the memory of one process: the twin of the scripts, for tests, trials and `memory://NAME`.

It does what the scripts do, synchronously, so it also serves as L2 in model checks.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from math import ceil

from cachebus import event as events
from cachebus import record as records
from cachebus.clock import Clock
from cachebus.keys import Key, guard_name
from cachebus.ports import Caller, Change, Leased, LeaseReply, LogEntry, ProbeReply, ReadReply, Register
from cachebus.record import Record

REQUEST_S = 60.0
SILENT_S = 60.0


def _no_listener(message: bytes) -> None:
    """What a shard publishes to before anybody listens."""


class MemoryShard:
    """One shard's state, and the operations on it; each is one atomic step."""

    def __init__(
        self, clock: Clock, *, marks_max: int = 100_000, log_max: int = 100_000, guard_max_s: float = 0.0
    ) -> None:
        self.clock = clock
        self.marks_max, self.log_max, self.guard_max_s = marks_max, log_max, guard_max_s
        self.server = secrets.token_hex(20)
        """The incarnation; change it to play a restart or failover."""
        self.publish: Callable[[bytes], None] = _no_listener
        self.new_epoch: Callable[[], bytes] = lambda: secrets.token_hex(8).encode()
        self.born = float("-inf")
        self.wipe()
        self.is_new = True
        """Nobody has used it yet, so that no guard can have been lost."""

    def wipe(self) -> None:
        """FLUSHALL."""
        self.is_new = False
        self.guards: dict[str, dict[str, float]] = {}
        self.meta_server = ""
        self.epoch, self.seq, self.floor, self.marked = b"", 0, 0, 0
        self.marks: dict[str, int] = {}
        self.messages: dict[int, bytes] = {}
        self.nodes: dict[str, tuple[int, float]] = {}
        self.register_name = b""
        self.records: dict[str, tuple[bytes, float]] = {}
        self.leases: dict[str, tuple[bytes, str, float, bool]] = {}
        self.counters: dict[str, tuple[int, float]] = {}
        self.requests: dict[str, tuple[int, float]] = {}

    # -- what every script begins with ------------------------------------------------------------------------------

    def arrive(self, caller: Caller) -> None:
        """Take over where the server is not the one that meta speaks of, and note the caller's line."""
        lost = caller.epoch == self.epoch and caller.applied > self.seq
        if not self.epoch or self.meta_server != self.server or lost or len(self.marks) != self.marked:
            self.epoch, self.seq = self.new_epoch(), max(self.seq, caller.applied) + 1
            self.meta_server, self.floor, self.marked = self.server, 0, 0
            self.born, self.guards, self.is_new = self.born if self.is_new else self.clock(), {}, False
            self.marks, self.messages, self.nodes, self.register_name = {}, {}, {}, b""
        if caller.node:
            if not self.nodes:
                self.register_name = self.new_epoch()
            self.nodes[caller.node] = (caller.applied if caller.epoch == self.epoch else 0, self.clock())

    def hidden(self, record: Record, names: Sequence[str]) -> bool:
        """Whether a record may not be believed."""
        if record.epoch != self.epoch or record.seq < self.floor:
            return True
        return any(self.marks.get(name, 0) > record.seq for name in (*names, *record.tags))

    def stored(self, key: Key) -> tuple[bytes, Record] | None:
        """The key's record if there is one that may be believed, expired or not."""
        data, until = self.records.get(key.l2, (b"", 0.0))
        if until <= self.clock():
            self.records.pop(key.l2, None)
            return None
        try:
            record = records.decode(data)
        except records.CorruptRecord:
            return None
        return None if self.hidden(record, key.names) else (data, record)

    def expired(self, record: Record) -> bool:
        """Whether a record's hard expiry is over."""
        return 0 < record.expires_ms <= self.clock() * 1000

    def announce(self, names: Sequence[str], body: bytes) -> None:
        """Move the marks to the next seq, log, publish."""
        self.seq += 1
        if names:
            for name in names:
                self.marks.pop(name, None)  # re-inserted last: the oldest come first
                self.marks[name] = self.seq
            while len(self.marks) > self.marks_max:
                oldest = next(iter(self.marks))
                self.floor = max(self.floor, self.marks.pop(oldest))
            self.marked = len(self.marks)
        message = events.encode(self.epoch, self.seq, self.floor, int(self.clock() * 1_000_000), body)
        self.messages[self.seq] = message
        while len(self.messages) > self.log_max:
            del self.messages[next(iter(self.messages))]
        self.publish(message)

    def forget(self, keys: Sequence[Key]) -> None:
        """Records and leases of these keys go."""
        for key in keys:
            self.records.pop(key.l2, None)
            self.leases.pop(key.l2, None)

    def put(self, key: Key, record: Record, px_ms: int) -> Change:
        """Store a record. After a takeover, which loses all guards, it lives no longer than one of them might have."""
        now, most_ms, expires_ms = self.clock(), int(self.guard_max_s * 1000), 0
        if now < self.born + self.guard_max_s:
            px_ms = min(px_ms or most_ms, most_ms)
            latest_ms = int(now * 1000) + most_ms
            if not 0 < record.expires_ms <= latest_ms:
                record.expires_ms = expires_ms = latest_ms
        self.records[key.l2] = (record.encode(), now + px_ms / 1000 if px_ms else float("inf"))
        return Change(self.epoch, self.seq, True, self.floor, expires_ms)

    def guarded_ms(self, key: Key, tags: Sequence[str]) -> int | None:
        """For how long the guard that ends first still stands on a key, its scopes or these tags; None without one."""
        now = self.clock()
        ends = [
            end
            for name in (guard_name(key), *key.names, *tags)
            for end in self.guards.get(name, {}).values()
            if end > now
        ]
        return ceil((min(ends) - now) * 1000) if ends else None

    # -- the scripts ------------------------------------------------------------------------------------------------

    def probe(self, caller: Caller, marks: bool) -> ProbeReply:
        """See `Store.probe`."""
        self.arrive(caller)
        now = self.clock()
        silent = [node for node, (_, at) in self.nodes.items() if at < now - SILENT_S]
        if silent:
            self.nodes = {node: line for node, line in self.nodes.items() if node not in silent}
            self.register_name = self.new_epoch()
        given = dict(self.marks) if marks else None
        born_us = 0 if self.born == float("-inf") else int(self.born * 1_000_000)
        return ProbeReply(self.epoch, self.seq, self.floor, int(now * 1_000_000), given, self.register_name, born_us)

    def register(self, caller: Caller) -> Register:
        """See `Store.register`."""
        self.arrive(caller)
        lines = {node: (applied, int(at * 1_000_000)) for node, (applied, at) in self.nodes.items()}
        return Register(self.epoch, self.register_name, lines)

    def leave(self, caller: Caller) -> None:
        """See `Store.leave`."""
        self.arrive(caller)
        self.nodes.pop(caller.node, None)

    def get(self, key: Key) -> bytes | None:
        """See `Store.get`."""
        data, until = self.records.get(key.l2, (None, 0.0))
        return data if until > self.clock() else None

    def read(self, caller: Caller, keys: Sequence[Key]) -> ReadReply:
        """See `Store.read`."""
        self.arrive(caller)
        found = [self.stored(key) for key in keys]
        return ReadReply(self.epoch, self.seq, [hit[0] if hit else None for hit in found])

    def lease(
        self, key: Key, caller: Caller, token: str, px_ms: int, refresh: bool, tags: Sequence[str] = ()
    ) -> LeaseReply:
        """See `Store.lease`."""
        self.arrive(caller)
        left_ms = self.guarded_ms(key, tags)
        if left_ms is not None:
            return LeaseReply(self.epoch, self.seq, Leased.GUARDED, None, left_ms)
        hit = self.stored(key)
        if hit and not refresh and not self.expired(hit[1]):
            return LeaseReply(self.epoch, self.seq, Leased.HIT, hit[0], 0)
        now = self.clock()
        held = self.leases.get(key.l2)
        if held and held[0] == self.epoch and held[2] > now and held[1] != token:
            self.leases[key.l2] = (held[0], held[1], held[2], True)
            return LeaseReply(self.epoch, self.seq, Leased.WAIT, None, int((held[2] - now) * 1000))
        self.leases[key.l2] = (self.epoch, token, now + px_ms / 1000, False)
        return LeaseReply(self.epoch, self.seq, Leased.GRANTED, hit[0] if hit else None, 0)

    def holds(self, key: Key, token: str) -> bool:
        """Whether the token's lease still stands."""
        held = self.leases.get(key.l2)
        return held is not None and held[:2] == (self.epoch, token) and held[2] > self.clock()

    def hold(self, key: Key, token: str, px_ms: int) -> None:
        """See `Store.extend` and `Store.release` (px 0)."""
        self.arrive(Caller("", 0, b""))
        if not self.holds(key, token):
            return
        epoch, _, _, waited = self.leases[key.l2]
        if px_ms:
            self.leases[key.l2] = (epoch, token, self.clock() + px_ms / 1000, waited)
        else:
            self._end_lease(key)

    def _end_lease(self, key: Key) -> None:
        if self.leases.pop(key.l2)[3]:
            self.publish(events.WAKE + key.l1.encode())

    def fill(self, key: Key, caller: Caller, token: str, record: Record, px_ms: int, over: bytes) -> Change:
        """See `Store.fill`."""
        self.arrive(caller)
        if not self.holds(key, token):
            return Change(self.epoch, self.seq, False, self.floor)
        self._end_lease(key)
        now = self.stored(key) if over else None
        refused = self.hidden(record, key.names) or self.guarded_ms(key, record.tags) is not None
        if refused or (over and (now is None or now[1].version != over)):
            return Change(self.epoch, self.seq, False, self.floor)
        return self.put(key, record, px_ms)

    def invalidate(self, caller: Caller, keys: Sequence[Key], names: Sequence[str], body: bytes) -> Change:
        """See `Store.invalidate`."""
        self.arrive(caller)
        self.forget(keys)
        self.announce(names, body)
        return Change(self.epoch, self.seq, True, self.floor)

    def guard(
        self, caller: Caller, keys: Sequence[Key], names: Sequence[str], token: str, px_ms: int, body: bytes
    ) -> Change:
        """See `Store.guard`."""
        self.arrive(caller)
        now = self.clock()
        for name in (*map(guard_name, keys), *names):
            tokens = {t: end for t, end in self.guards.pop(name, {}).items() if end > now and t != token}
            if px_ms:
                tokens[token] = now + px_ms / 1000
            if tokens:
                self.guards[name] = tokens
        return self.invalidate(caller, keys, names, body)

    def write(
        self, key: Key, caller: Caller, record: Record, px_ms: int, body: bytes,
        others: Sequence[Key], names: Sequence[str], if_absent: bool,
    ) -> Change:  # fmt: skip
        """See `Store.write`."""
        self.arrive(caller)
        guarded = self.guarded_ms(key, record.tags) is not None
        if if_absent:
            now = self.stored(key)
            if guarded or (now and not self.expired(now[1])):
                return Change(self.epoch, self.seq, False, self.floor)
        self.forget([key, *others])
        self.announce(names, body)
        if guarded:
            return Change(self.epoch, self.seq, False, self.floor)
        record.epoch, record.seq = self.epoch, self.seq
        return self.put(key, record, px_ms)

    def counter(self, key: Key, caller: Caller, amount: int, request: str, expires_ms: int) -> int:
        """See `Store.counter`."""
        self.arrive(caller)
        now = self.clock()
        asked = f"{key.l2}:{request}"
        answered = self.requests.get(asked)
        if request and answered and answered[1] > now:
            return answered[0]
        value, until = self.counters.get(key.l2, (0, float("inf")))
        if until <= now:
            value, until = 0, float("inf")
        if not amount:
            return value
        value += amount
        if expires_ms and until == float("inf"):
            until = now + expires_ms / 1000
        self.counters[key.l2] = (value, until)
        if request:
            self.requests = {name: r for name, r in self.requests.items() if r[1] > now}
            self.requests[asked] = (value, now + REQUEST_S)
        return value

    def log(self, after: int, count: int) -> list[LogEntry]:
        """See `Store.log`."""
        newer = sorted(seq for seq in self.messages if seq > after)[:count]
        return [LogEntry(seq, self.messages[seq]) for seq in newer]
