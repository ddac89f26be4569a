"""The source of truth behind the caches: the version of every item, in memory that all processes share. Beside it lie
session tokens, by which nodes read after each other's writes.

A version is one machine word, so a reader sees an old or a new one, never half of each. A writer holds the file lock of
its item, which the kernel releases if the process ends.
"""

from __future__ import annotations

import fcntl
import mmap
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

FILE: Final = "source"
SESSIONS: Final = 32
RECENT: Final = 256
"""How many items are remembered as written a moment ago."""
_SLOT: Final = Struct("<III16sQ")
_SLOT_BYTES: Final = 64


class Token(NamedTuple):
    """A receipt for a version of an item, as one node hands it to another."""

    item: int
    version: int
    text: str


def create(directory: Path, items: int) -> None:
    """Create the file, with every item in version 1."""
    with (directory / FILE).open("wb") as file:
        file.write((1).to_bytes(4, "little") * items)
        file.truncate(_slots_at(items) + (items + SESSIONS) * _SLOT_BYTES)


class SourceOfTruth:
    """The file, mapped; a context manager."""

    def __init__(self, directory: Path, items: int) -> None:
        self._file = (directory / FILE).open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._items = items
        self._words = memoryview(self._map)
        self.versions = self._words[: items * 4].cast("I")
        """The newest version that is committed, by item."""
        self.recent = self._words[items * 4 : (items + RECENT) * 4].cast("I")
        """Items that were written a moment ago; 0 for an unused place."""

    def __enter__(self) -> SourceOfTruth:
        return self

    def __exit__(self, *_: object) -> None:
        self.versions.release()
        self.recent.release()
        self._words.release()
        self._map.close()
        self._file.close()

    def raise_version(self, item: int) -> int:
        """Commit a change of an item; returns its new version."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, item)
        try:
            version = self.versions[item] + 1
            self.versions[item] = version
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, item)
        return version

    def leave(self, slot: int, token: Token) -> None:
        """Put a token where other nodes find it: in the slot of its item, or of a session."""
        shard, epoch, seq = token.text.split(".")
        packed = _SLOT.pack(token.item, token.version, int(shard), epoch.encode(), int(seq))
        at = self._at(slot)
        self._map[at : at + _SLOT.size + 4] = packed + crc32(packed).to_bytes(4, "little")

    def find(self, slot: int) -> Token | None:
        """The token in a slot; None if there is none, or while another process writes it."""
        at = self._at(slot)
        packed = self._map[at : at + _SLOT.size]
        if crc32(packed).to_bytes(4, "little") != self._map[at + _SLOT.size : at + _SLOT.size + 4]:
            return None
        item, version, shard, epoch, seq = _SLOT.unpack(packed)
        return Token(item, version, f"{shard}.{epoch.decode()}.{seq}") if item else None

    def session(self, number: int) -> int:
        """The slot of a session."""
        return self._items + number

    def _at(self, slot: int) -> int:
        return _slots_at(self._items) + slot * _SLOT_BYTES


def _slots_at(items: int) -> int:
    return ((items + RECENT) * 4 + _SLOT_BYTES - 1) // _SLOT_BYTES * _SLOT_BYTES
