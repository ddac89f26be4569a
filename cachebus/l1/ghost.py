"""The keys that were evicted not long ago, by their hash alone."""

from __future__ import annotations

from array import array

_FIRST_SLOTS = 64
_MASK16 = 0xFFFF
_LONG_AGO = 1 << 15
_UNITS_BITS = 12


class Ghosts:
    """A set of hashes that forgets the older ones: four bytes a slot, in two arrays, never an object a key.

    A slot holds 16 bits of the hash and the coarse time of its adding; time is counted in additions. A hash lives in
    one of a pair of neighbouring slots, whichever is older when it comes. It expires once `span` others came after it.
    A wrong answer, either way, costs at most a hit: a key starts in the wrong queue.
    """

    __slots__ = ("_added", "_hashes", "_mask", "_shift", "_stamps", "slots")

    def __init__(self, slots: int = _FIRST_SLOTS) -> None:
        """Make an empty set of at least `slots` slots; the attribute `slots` tells how many, of 4 bytes each."""
        bits = max(1, (slots - 1).bit_length())
        self.slots = 1 << bits
        self._mask = self.slots - 1
        # A stamp's unit: so coarse that the whole table takes 4096 of them, and 16 bits wrap only long after expiry.
        self._shift = max(0, bits - _UNITS_BITS)
        self._hashes = array("H", bytes(2 << bits))
        self._stamps = array("H", bytes(2 << bits))
        # The empty slots' stamp is 0, so now is late.
        self._added = _LONG_AGO << self._shift

    def add(self, key_hash: int) -> None:
        """Remember a key's `hash()`."""
        self._added += 1
        now = self._added >> self._shift
        stamps = self._stamps
        slot = key_hash & self._mask
        short = key_hash >> 32 & _MASK16
        if self._hashes[slot] != short and (now - stamps[slot]) & _MASK16 < (now - stamps[slot ^ 1]) & _MASK16:
            slot ^= 1
        self._hashes[slot] = short
        stamps[slot] = now & _MASK16

    def take(self, key_hash: int, span: int) -> bool:
        """Forget a key's `hash()`; whether it was there and among the last `span` added."""
        slot = key_hash & self._mask
        short = key_hash >> 32 & _MASK16
        if self._hashes[slot] != short:
            slot ^= 1
            if self._hashes[slot] != short:
                return False
        now = self._added >> self._shift
        age = (now - self._stamps[slot]) & _MASK16
        self._stamps[slot] = (now - _LONG_AGO) & _MASK16
        return age << self._shift < span

    def check(self) -> None:
        """Assert that the arrays and the mask fit together."""
        assert len(self._hashes) == len(self._stamps) == self.slots == self._mask + 1
        assert self.slots & self._mask == 0
