"""The keys that were evicted not long ago, by their hash alone."""

from __future__ import annotations

from array import array

_MASK32 = 0xFFFFFFFF
_FIRST_SLOTS = 64


class Ghosts:
    """A set of 32-bit hashes that forgets the older ones: 8 bytes a slot, in two arrays, never an object a key.

    A hash lives in a pair of neighbouring slots and pushes out the older of the two. A ghost also expires once as many
    others as the cache has entries came after it. Both kinds of error cost a hit at worst, never a wrong answer.
    """

    __slots__ = ("_added", "_hashes", "_mask", "_stamps")

    def __init__(self) -> None:
        self._hashes = array("I", bytes(4 * _FIRST_SLOTS))
        self._stamps = array("I", bytes(4 * _FIRST_SLOTS))
        self._mask = _FIRST_SLOTS - 1
        # Starts far from 0, so that the empty slots' stamps look long expired.
        self._added = 1 << 31

    def __len__(self) -> int:
        """Number of slots, living or not: memory is 8 bytes times this."""
        return len(self._hashes)

    def add(self, key_hash: int, span: int) -> None:
        """Remember a key's `hash()`, in a table of at least `span` slots."""
        while len(self._hashes) < span:
            self._double()
        key_hash &= _MASK32
        stamps = self._stamps
        now = self._added = (self._added + 1) & _MASK32
        slot = key_hash & self._mask
        if self._hashes[slot] != key_hash and (now - stamps[slot]) & _MASK32 < (now - stamps[slot ^ 1]) & _MASK32:
            slot ^= 1
        self._hashes[slot] = key_hash
        stamps[slot] = now

    def take(self, key_hash: int, span: int) -> bool:
        """Forget a key's `hash()`; whether it was there and among the last `span` added."""
        key_hash &= _MASK32
        slot = key_hash & self._mask
        if self._hashes[slot] != key_hash:
            slot ^= 1
            if self._hashes[slot] != key_hash:
                return False
        age = (self._added - self._stamps[slot]) & _MASK32
        self._hashes[slot] = 0
        self._stamps[slot] = (self._added - (1 << 31)) & _MASK32
        return age < span

    def check(self) -> None:
        """Assert that the arrays and the mask fit together."""
        assert len(self._hashes) == len(self._stamps) == self._mask + 1
        assert len(self._hashes) & self._mask == 0

    def _double(self) -> None:
        # With one more bit of the hash in use, each old slot has two heirs: a copy for both is right for one of them,
        # and the other expires. It takes microseconds where rehashing would take milliseconds.
        self._hashes *= 2
        self._stamps *= 2
        self._mask = len(self._hashes) - 1
