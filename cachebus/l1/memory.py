"""L1: one dictionary, bounded by S3-FIFO (Yang et al., SOSP 2023).

New keys enter a small queue, a seventh of the cache. Those hit there move to the main queue, the others leave early and
are remembered as ghosts; a ghost that comes back enters the main queue at once. So keys that are read once, a scan,
pass through the small queue and leave the rest alone; and a hit moves nothing, it only counts.

Sizes are right on average over all that comes, and what stays may be heavier than that. So a value is looked into when
its key turns out to be hot: when it is promoted, comes back, or replaces one that was read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle
from sys import getsizeof

from cachebus.l1.entry import ENTRY_OVERHEAD_BYTES, Entry, size_class
from cachebus.l1.ghost import Ghosts
from cachebus.l1.weight import LARGEST_PART, Weights
from cachebus.observe.hooks import Hooks

# The paper has a tenth, and two hits to be promoted; on real traces a seventh and one hit lose to no other policy.
SMALL_PART = 7
# A put may meet a cache full of hot keys, each of which has earned three more rounds. Past this many, lest a single put
# walk through all of them, the newest key goes instead if nobody has read it, else the one at hand.
MAX_REPRIEVES = 64


class L1:
    """The node's entries by key, at most `max_entries` of them and `max_bytes` (the sum of their sizes).

    `entries` is public for the hit path, which reads it directly and bumps `freq`; it is changed only by the methods
    here. Either bound 0 turns L1 off. One event loop's property: nothing is locked.
    """

    # Each key is exactly once in one of the two queues. A removed one stays there, listed in `_dead` with its freq
    # (deques cannot drop from the middle), until it reaches the head, a compaction meets it, or it is put again.
    __slots__ = (
        "_compactor",
        "_dead",
        "_ghosts",
        "_hooks",
        "_largest_bytes",
        "_main",
        "_max_bytes",
        "_max_entries",
        "_small",
        "_sweeps",
        "bytes",
        "entries",
        "evictions",
        "weights",
    )

    def __init__(self, max_entries: int, max_bytes: int, hooks: Hooks | None = None) -> None:
        self.entries: dict[str, Entry] = {}
        self.bytes = 0
        self.evictions = 0
        self.weights = Weights(max_bytes)
        """What values take, for `Entry.size`."""
        self._hooks = hooks or Hooks()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._largest_bytes = max_bytes // LARGEST_PART if min(max_entries, max_bytes) > 0 else -1
        self._small: deque[str] = deque()
        self._main: deque[str] = deque()
        self._dead: dict[str, int] = {}
        self._ghosts = Ghosts()
        self._sweeps: list[Callable[[Entry], bool]] = []
        self._compactor = self._compact()

    def __len__(self) -> int:
        """Number of entries held."""
        return len(self.entries)

    def put(self, entry: Entry) -> bool:
        """Insert, or replace what is held under the key; evicts until the bounds hold.

        Returns whether the entry is in. One larger than an eighth of `max_bytes` is refused, and what was under its key
        is dropped, as it is no longer the newest.
        """
        entries = self.entries
        key = entry.key
        size = entry.size
        if size > self._largest_bytes:
            self.remove(key)
            return False
        old = entries.get(key)
        if old is not None:
            return self._replace(old, entry)
        held = len(entries)
        if held >= self._max_entries or self.bytes + size > self._max_bytes:
            self._evict(self._max_entries - 1, self._max_bytes - size)
        if key in self._dead:
            # Coming back to its old place keeps a hot key hot through an invalidation.
            entry.freq = self._dead.pop(key)
            hot = entry.freq > 0
        else:
            hot = self.evictions > 0 and self._ghosts.take(hash(key), held - held // SMALL_PART)
            (self._main if hot else self._small).append(key)
        entries[key] = entry
        self.bytes += size
        return self._stays_when_weighed(entry) if hot else True

    def remove(self, key: str) -> bool:
        """Drop a key; whether it was held."""
        entry = self.entries.pop(key, None)
        if entry is None:
            return False
        self.bytes -= entry.size
        self._dead[key] = entry.freq
        # A few steps with every removal keep the dead few without ever walking a long queue at once.
        if len(self._dead) > self._dead_limit():
            for _ in range(8):
                if self._dead:
                    next(self._compactor)
        return True

    @property
    def has_room(self) -> bool:
        """Whether an entry of any size that is let in at all may come in, and nothing goes for it."""
        return len(self.entries) < self._max_entries and 0 <= self._largest_bytes <= self._max_bytes - self.bytes

    def queued(self) -> tuple[list[str], list[str]]:
        """The keys of the main and the small queue as they stand, the next to be evicted first; removed ones too."""
        return list(self._main), list(self._small)

    def clear(self) -> None:
        """Drop everything, the ghosts too."""
        self.entries.clear()
        self._small.clear()
        self._main.clear()
        self._dead.clear()
        self._ghosts = Ghosts()
        self.bytes = 0

    def sweep(
        self, is_dead: Callable[[Entry], bool], clock: Callable[[], float], slice_s: float = 0.001
    ) -> Iterator[int]:
        """Remove every entry that was there at the first step and `is_dead`; others may be put and removed between.

        Each step works for about `slice_s` seconds of `clock` and yields how many it removed (evictions and other
        sweeps that meet a dead one first take it too, and count it as theirs). `is_dead` must not touch this L1.
        """
        self._sweeps.append(is_dead)
        try:
            removed = 0
            started_s = clock()
            # Small first: keys move from small to main, never back. Who pops a key meanwhile (an eviction, another
            # sweep) either drops it or asks `is_dead` too, so one turn of each queue meets them all.
            for queue in (self._small, self._main):
                for turn in range(len(queue)):
                    if not queue:
                        break
                    removed += self._visit(queue)
                    if turn & 15 == 15 and clock() - started_s >= slice_s:
                        yield removed
                        removed = 0
                        started_s = clock()
            yield removed
        finally:
            self._sweeps.remove(is_dead)

    def check(self) -> None:
        """Assert every inner invariant; for tests, as it walks everything."""
        entries, dead = self.entries, self._dead
        assert all(key == entry.key and 0 <= entry.freq <= 3 for key, entry in entries.items())
        assert self.bytes == sum(entry.size for entry in entries.values())
        assert len(entries) <= max(0, self._max_entries)
        assert self.bytes <= max(0, self._max_bytes)
        queued = [*self._small, *self._main]
        assert len(queued) == len(set(queued)) == len(entries) + len(dead)
        assert set(queued) == entries.keys() | dead.keys()
        # By the bound, not by what is held: a sweep or a large entry may lower that at once.
        assert len(dead) <= 2 * (64 + max(0, self._max_entries) // 8)
        self._ghosts.check()

    def _replace(self, old: Entry, entry: Entry) -> bool:
        key = entry.key
        entry.freq = old.freq
        self.entries[key] = entry
        self.bytes += entry.size - old.size
        if entry.freq:
            return self._stays_when_weighed(entry)
        if self.bytes > self._max_bytes:
            self._evict(self._max_entries, self._max_bytes)
        return self.entries.get(key) is entry

    def _stays_when_weighed(self, entry: Entry) -> bool:
        """Whether one that has just come in, under a hot key, still is in when its size is known better."""
        self._weigh(entry)
        if entry.size > self._largest_bytes:
            self.remove(entry.key)
        elif self.bytes > self._max_bytes:
            self._evict(self._max_entries, self._max_bytes)
        return self.entries.get(entry.key) is entry

    def _weigh(self, entry: Entry) -> None:
        size = self.weights.again(entry.value, entry.size - ENTRY_OVERHEAD_BYTES)
        if size:
            size = size_class(size + ENTRY_OVERHEAD_BYTES + getsizeof(entry.key))
            self.bytes += max(0, size - entry.size)
            entry.size = max(size, entry.size)

    def _evict(self, max_entries: int, max_bytes: int) -> None:
        entries, small, main = self.entries, self._small, self._main
        if len(entries) > self._ghosts.slots:
            # Made only when first needed, at the size that the bounds allow; later only if entries became smaller.
            self._ghosts = Ghosts(len(entries))
        reprieves = MAX_REPRIEVES
        while len(entries) > max_entries or self.bytes > max_bytes:
            queue = small if len(small) * SMALL_PART > len(entries) or not main else main
            entry = entries.get(queue[0])
            if entry is None:
                del self._dead[queue.popleft()]
            elif self._sweeps and self._doomed(entry):
                queue.popleft()
                self._drop(entry)
            elif entry.freq and reprieves:
                reprieves -= 1
                self._reprieve(queue, entry)
            elif entry.freq and small and self._is_cold(small[-1]):
                self._ghosts.add(hash(small[-1]))
                self._evict_one(entries[small.pop()])
            else:
                if queue is small:
                    self._ghosts.add(hash(queue[0]))
                queue.popleft()
                self._evict_one(entry)

    def _reprieve(self, queue: deque[str], entry: Entry) -> None:
        if queue is self._main:
            entry.freq -= 1
            queue.rotate(-1)
        else:
            entry.freq = 0
            self._weigh(entry)
            if entry.size > self._largest_bytes:
                self._evict_one(entry)
                queue.popleft()
            else:
                self._main.append(queue.popleft())

    def _is_cold(self, key: str) -> bool:
        entry = self.entries.get(key)
        return entry is not None and not entry.freq

    def _evict_one(self, entry: Entry) -> None:
        self.bytes -= entry.size
        del self.entries[entry.key]
        self.evictions += 1
        if self._hooks.evicted:
            self._hooks.tell("evicted", entry.key, entry.size)

    def _drop(self, entry: Entry) -> None:
        self.bytes -= entry.size
        del self.entries[entry.key]

    def _doomed(self, entry: Entry) -> bool:
        return any(is_dead(entry) for is_dead in self._sweeps)

    def _visit(self, queue: deque[str]) -> int:
        """Look at the head: drop it, or send it to the tail. Returns how many entries went (0 or 1)."""
        key = queue[0]
        entry = self.entries.get(key)
        if entry is None:
            del self._dead[key]
            queue.popleft()
            return 0
        if self._sweeps and self._doomed(entry):
            queue.popleft()
            self._drop(entry)
            return 1
        queue.rotate(-1)
        return 0

    def _dead_limit(self) -> int:
        return 64 + len(self.entries) // 8

    def _compact(self) -> Iterator[None]:
        # Runs for ever, one key a step; advanced only while there is something dead, so a queue is not empty.
        for queue in cycle((self._small, self._main)):
            for _ in range(len(queue)):
                if not queue:
                    break
                self._visit(queue)
                yield
