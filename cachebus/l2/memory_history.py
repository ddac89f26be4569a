"""The history of a shard of L2 in memory: what every script of the twin begins with, and how it tells of a change."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from cachebus.base.clock import WALL_S, Clock
from cachebus.core.ports import Caller, NodeRow
from cachebus.l2.memory_fill_lease import MemoryFillLease
from cachebus.l2.memory_invalidated import MemoryInvalidated
from cachebus.wire import event as events

ENTRY_OVERHEAD_BYTES = 64


def _no_listener(message: bytes) -> None:
    """What a shard publishes to before anybody listens."""


class MemoryHistory:
    """One shard's state: its epoch and seq, its log, and all that lies under them."""

    def __init__(
        self,
        clock: Clock,
        *,
        max_invalidated_scopes: int = 100_000,
        log_max: int = 100_000,
        log_max_bytes: int = 1 << 26,
        publish: Callable[[bytes], None] = _no_listener,
    ) -> None:
        self.clock: Clock = lambda: WALL_S + clock()
        """The server's, a wall clock as every server's is: records hold its times, which are never below zero."""
        self.max_invalidated_scopes, self.log_max, self.log_max_bytes = max_invalidated_scopes, log_max, log_max_bytes
        self.server = secrets.token_hex(20)
        """The incarnation; change it to play a restart or failover."""
        self.publish = publish
        self.new_epoch: Callable[[], bytes] = lambda: secrets.token_hex(8).encode()
        self.born_s = float("-inf")
        self.wipe()
        self.is_new = True
        """Nobody has used it yet, so that no guard can have been lost."""

    def wipe(self) -> None:
        """FLUSHALL."""
        self.is_new = False
        self.identity = secrets.token_hex(8)
        self.meta_server = ""
        self.epoch, self.seq = b"", 0
        self.bound_ms = self.guard_ms = 0
        self.keeps_without_l2 = False
        self.invalidated = MemoryInvalidated(self.max_invalidated_scopes)
        self._empty()
        self.records: dict[str, tuple[bytes, float]] = {}
        self.fill_leases: dict[str, MemoryFillLease] = {}
        self.counters: dict[str, tuple[int, float]] = {}
        self.requests: dict[tuple[str, str], tuple[int, float]] = {}

    def _empty(self) -> None:
        """What an epoch begins with."""
        self.guards: dict[str, dict[str, float]] = {}
        self.guarded, self.guarded_until_s = 0, 0.0
        """How many names are guarded, so that a loss is noticed, and until when any can be."""
        self.swept_s = 0.0
        """When what was swept of guards that were left had ended, the latest."""
        self.invalidated = MemoryInvalidated(self.max_invalidated_scopes)
        self.messages: dict[int, bytes] = {}
        self.logged_bytes = 0
        self.rows: dict[str, NodeRow] = {}
        self.nodes_name = b""
        self.in_contexts: set[str] = set()

    # -- what every script begins with ------------------------------------------------------------------------------

    def is_lost(self, caller: Caller, bucket: str | None) -> bool:
        """Whether this is another history than the one that meta speaks of. `bucket`: whose marks are judged by, "" for
        all; None where none are."""
        return (
            not self.epoch
            or self.meta_server != self.server
            or (caller.epoch == self.epoch and caller.applied > self.seq)
            or self.invalidated.lost
            or (bucket is not None and self.invalidated.lacks(bucket))
            or (self.guarded_until_s > self.clock() and len(self.guards) != self.guarded)
        )

    def arrive(self, caller: Caller, bucket: str | None = None) -> None:
        """Take over where the history is another one."""
        if self.is_lost(caller, bucket):
            self.epoch, self.seq = self.new_epoch(), max(self.seq, caller.applied) + 1
            self.meta_server = self.server
            self._note_largest(caller)
            self.born_s, self.is_new = float("-inf") if self.is_new else self.clock(), False
            self._empty()

    def _note_largest(self, caller: Caller) -> None:
        largest = caller.largest
        self.bound_ms, self.guard_ms = max(self.bound_ms, largest.bound_ms), max(self.guard_ms, largest.guard_ms)
        self.keeps_without_l2 = self.keeps_without_l2 or largest.keeps_without_l2

    def attend(self, caller: Caller, bucket: str | None = None) -> None:
        """The same, also where the caller has left this history, and note the caller's row."""
        if self.epoch in caller.former_epochs:
            self.meta_server = ""
        self.arrive(caller, bucket)
        if caller.node:
            if not self.nodes_name:
                self.nodes_name = self.new_epoch()
            at_us = int(self.clock() * 1_000_000)
            self.rows[caller.node] = NodeRow(caller.applied, caller.epoch, at_us, caller.about)

    def announce(self, scopes: Sequence[str], body: bytes) -> bytes:
        """Move the marks to the next seq, log, publish; gives the event's header."""
        self.seq += 1
        ids = [name for name in scopes if name[0] == "I"]
        needless = [name for name in ids if name.split("\x1f", 3)[2] not in self.in_contexts]
        raised = self.invalidated.set([name for name in scopes if name not in needless], self.seq)
        if self.invalidated.lost:  # it had to forget some, and they were gone: who comes next takes over
            self.meta_server = ""
        left_out = bool(needless) and len(needless) == len(ids)
        header = events.EventHeader(self.epoch, self.seq, int(self.clock() * 1_000_000), left_out, raised).encode(body)
        self.messages[self.seq] = header + body
        self.logged_bytes += len(header) + len(body) + ENTRY_OVERHEAD_BYTES
        while len(self.messages) > 1 and (len(self.messages) > self.log_max or self.logged_bytes > self.log_max_bytes):
            gone = self.messages.pop(next(iter(self.messages)))
            self.logged_bytes -= len(gone) + ENTRY_OVERHEAD_BYTES
        self.publish(header + body)
        return header
