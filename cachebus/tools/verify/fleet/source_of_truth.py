"""The source behind the caches: the version of every item, in memory that all processes share; and the tokens that
one node leaves for the others.

A version is one machine word, so who reads it reads an old or a new one, never half of each. Who raises one holds the
lock of its byte, which the kernel opens should the process end.
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
"""So many places for items that were written a moment ago."""
_SLOT: Final = Struct("<III16sQ")
_SLOT_BYTES: Final = 64


class Token(NamedTuple):
    """A receipt for a version of an item, as it goes from node to node."""

    item: int
    version: int
    text: str


def create(directory: Path, items: int) -> None:
    """Make the file, with every item in version 1."""
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
        """By item: the newest that is committed."""
        self.recent = self._words[items * 4 : (items + RECENT) * 4].cast("I")
        """Items with a fresh token; 0 where there is none yet."""

    def __enter__(self) -> SourceOfTruth:
        return self

    def __exit__(self, *_: object) -> None:
        self.versions.release()
        self.recent.release()
        self._words.release()
        self._map.close()
        self._file.close()

    def raise_version(self, item: int) -> int:
        """Commit a change of an item; gives its new version."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, item)
        try:
            version = self.versions[item] + 1
            self.versions[item] = version
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, item)
        return version

    def leave(self, slot: int, token: Token) -> None:
        """Put a token where others find it: the newest of an item in the item's own slot, a session's behind them."""
        shard, epoch, seq = token.text.split(".")
        packed = _SLOT.pack(token.item, token.version, int(shard), epoch.encode(), int(seq))
        at = self._at(slot)
        self._map[at : at + _SLOT.size + 4] = packed + crc32(packed).to_bytes(4, "little")

    def find(self, slot: int) -> Token | None:
        """What lies there; None where nothing does, or where another process is just writing."""
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
