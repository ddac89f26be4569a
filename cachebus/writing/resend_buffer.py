"""What a publisher invalidated lately, to be repeated where another epoch has begun.

Replication is asynchronous: a primary that has been deposed without knowing it acknowledges what is lost with it.
Whoever then meets the new epoch repeats there what it has called since that epoch was born, and only that:

1. A call that began before the birth needs no repeating. The source was changed before the call; all that the new epoch
   holds was loaded or set after the birth, so it shows that change. A repeat would remove it, and help nobody.
2. A call that began after the birth reached the deposed primary while the new one served already: a load of the new
   epoch may have read the source before the change. Only a repeat removes it, whatever newer value lies there by now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from cachebus.base.clock import Clock, OtherClock
from cachebus.base.log import logger
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import AT_ONCE, Plan
from cachebus.observe import Counters

REPEATED = "repeated in a new epoch"
"""The reason that is told of it."""
KEEP_S = 60.0
"""How far back: longer than any failover should take."""
ENTRY_OVERHEAD_BYTES = 200
"""Upper estimate of what an entry costs beside its packed bytes."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[list[str], list[str]]).decode


def packed(plan: Plan) -> bytes:
    """What a plan addresses, as one small object: the L1 names of its keys, and its scopes and tags."""
    return _pack(([key.l1 for key in plan.keys], plan.scopes))


def born_s(born_us: int, clock: OtherClock) -> float:
    """When an epoch was born at the earliest, on our clock (seconds), from its birth on the server's (µs; 0: unknown,
    and then -infinity)."""
    return clock.earliest_s(born_us / 1e6) if born_us else float("-inf")


class ResendEntry(msgspec.Struct, gc=False, eq=False):
    """One invalidation: when its call began, the epoch in which it was acknowledged, and what it addresses."""

    shard: int
    epoch: bytes
    called_s: float
    packed: bytes
    due: bool = False
    """Whether it was found to be lost, and could not be repeated yet: it does not grow too old for that."""

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return len(self.packed) + ENTRY_OVERHEAD_BYTES


class ResendBuffer:
    """A publisher's invalidations of the last minute."""

    def __init__(self, clock: Clock, keyspace: Keyspace, max_bytes: int, counters: Counters) -> None:
        """`max_bytes`: what they may take in memory at most; with 0 none are kept."""
        self._clock = clock
        self._keyspace = keyspace
        self._max_bytes = max_bytes
        self._counters = counters
        self._entries: deque[ResendEntry] = deque()
        self._warned_s = float("-inf")
        self.size_bytes = 0
        """About what all entries take in memory."""

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, plan: Plan, epoch: bytes, called_s: float) -> None:
        """L2 has acknowledged a plan in this epoch; its call began at `called_s`."""
        if self._max_bytes:
            entry = ResendEntry(plan.shard, epoch, called_s if plan.called_s is None else plan.called_s, packed(plan))
            self._entries.append(entry)
            self.size_bytes += entry.size_bytes
            self._bound()

    def forget_old(self) -> None:
        """Give back the memory of what is older than a minute; to be called now and then while nothing is noted."""
        since_s = self._clock() - KEEP_S
        while self._entries and self._entries[0].called_s < since_s and not self._entries[0].due:
            self._pop()

    @contextmanager
    def lost(self, index: int, epoch: bytes, since_s: float) -> Iterator[Iterator[Plan]]:
        """To be entered: what was called of a shard since its present epoch was born, and acknowledged in others.

        Each plan is to be repeated, which notes it anew, before the next one is taken. Where the block ends before all
        of them are, what is left is kept for the next try.

        `since_s`: when the epoch was born (`born_s`). A birth in the future says that the server's clock was set back
        since; nothing is known of it then, and all is lost.
        """
        self.forget_old()
        lost = self._take(index, epoch, float("-inf") if since_s > self._clock() else since_s)
        try:
            yield self._plans(lost)
        finally:
            if lost:
                self._replace([*lost, *self._entries])
                self._bound()

    def _take(self, index: int, epoch: bytes, since_s: float) -> deque[ResendEntry]:
        """Take out what was lost of the shard. From now on it is due, and grows no older."""
        too_old_s = self._clock() - KEEP_S
        lost: deque[ResendEntry] = deque()
        others: list[ResendEntry] = []
        for entry in self._entries:
            its = entry.shard == index and entry.epoch != epoch and entry.called_s >= since_s
            its = its and (entry.due or entry.called_s >= too_old_s)  # it may lie behind one that is due
            entry.due = its or (entry.due and entry.shard != index)
            (lost if its else others).append(entry)
        if lost:
            self._replace(others)
        return lost

    def _plans(self, entries: deque[ResendEntry]) -> Iterator[Plan]:
        """What the entries of a shard address, each thing once, in plans that are small enough for one step of L2.

        All is made as it is needed: a full buffer holds a quarter of a million keys, which would stall the loop. An
        entry leaves when all plans are behind that it has a part in.
        """
        planned: set[str] = set()  # of both kinds: a scope's name has fewer separators than any key's
        plan: Plan | None = None
        whole = 0
        """Entries of which all is planned, in the present plan or in those before it."""
        for entry in list(entries):
            keys, scopes = _unpack(entry.packed)
            for at, name in enumerate((*keys, *scopes)):
                if name in planned:
                    continue
                planned.add(name)
                plan = plan or Plan(entry.shard).because(REPEATED)
                plan.repeats(entry.called_s)
                if at < len(keys):
                    plan.keys.append(self._keyspace.named(name))
                else:
                    plan.scopes.append(name)
                if AT_ONCE in (len(plan.keys), len(plan.scopes)):
                    yield plan
                    plan = None
                    for _ in range(whole):
                        entries.popleft()
                    whole = 0
            whole += 1
        if plan is not None:
            yield plan
        entries.clear()

    def _replace(self, entries: list[ResendEntry]) -> None:
        self._entries = deque(entries)
        self.size_bytes = sum(entry.size_bytes for entry in entries)

    def _pop(self) -> None:
        self.size_bytes -= self._entries.popleft().size_bytes

    def _bound(self) -> None:
        """Let go of what is too old, then of the oldest as long as the rest takes too much."""
        self.forget_old()
        dropped = 0
        while self.size_bytes > self._max_bytes:
            self._pop()
            dropped += 1
        self._counters.resend_dropped += dropped
        now_s = self._clock()
        if dropped and now_s - self._warned_s >= KEEP_S:
            self._warned_s = now_s
            logger.warning(
                "invalidations of the last {:g} s take more than resend_max_bytes ({}): after a failover the oldest of "
                "them would not be repeated",
                KEEP_S,
                self._max_bytes,
            )
