"""What a node sees, written down as it happens into mapped files: what is on a log outlives a kill.

All times are `clock.monotonic` in seconds, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any, Final

CHUNK: Final = 1 << 16
"""Records in a file; the files are sparse, so what is not written costs nothing."""

READ: Final = Struct("<IId")
"""item and verb, version, when it began."""
WRITE: Final = Struct("<IIdddQQ")
"""item and verb, version, called, returned (0: never), last failed (0: never; of a guard: when it ends by itself),
epoch, seq."""
LOAD: Final = Struct("<IIdd")
"""item and kind of load, version (0: it failed), began, ended (0: never)."""
SHOWN: Final = Struct("<Idd")
"""item, when a read of it began, and when it was answered: of types whose sources rest, or with nothing."""
TOKEN: Final = Struct("<IIdII")
"""item and verb, version, when it began, version that the token stands for, kind of token."""
APPLIED: Final = Struct("<QQd")
"""epoch, seq, since when."""
DISTURBANCE: Final = Struct("<Idd")
"""kind, from, until: what this node knows to have gone wrong with itself."""
ANOMALY: Final = Struct("<IIIId")
"""item and verb, kind (see `anomalies`), two figures of that kind, when it began."""
REST: Final = Struct("<III")
"""item, version in L1, version in L2 (0: absent)."""

VERB_SHIFT: Final = 24
WAITED: Final = 64
"""Beside a write's verb: it returned when no node had the old value any more."""
ITEM_MASK: Final = (1 << VERB_SHIFT) - 1

KINDS: Final = {
    "reads": READ,
    "writes": WRITE,
    "loads": LOAD,
    "tokens": TOKEN,
    "shown": SHOWN,
    "absent": SHOWN,
    "applied": APPLIED,
    "disturbances": DISTURBANCE,
    "anomalies": ANOMALY,
    "rest": REST,
}


class HistoryLog:
    """A growing list of records of one kind. The first field of a record is never 0."""

    def __init__(self, directory: Path, name: str, kind: str) -> None:
        self._struct = KINDS[kind]
        self._base = directory / f"{kind}-{name}"
        self._pack_into = self._struct.pack_into
        self._size = self._struct.size
        self._maps: list[mmap.mmap] = []
        self._at = self._end = 0
        self._map: mmap.mmap

    def add(self, *fields: float) -> int:
        """Note a record; gives its place."""
        at = self._at
        if at == self._end:
            self._turn()
            at = 0
        self._pack_into(self._map, at, *fields)
        self._at = at + self._size
        return (len(self._maps) - 1) * CHUNK + at // self._size

    def change(self, place: int, *fields: float) -> None:
        """Note it anew."""
        chunk, at = divmod(place, CHUNK)
        self._pack_into(self._maps[chunk], at * self._size, *fields)

    def _turn(self) -> None:
        path = Path(f"{self._base}.{len(self._maps)}")
        with path.open("w+b") as file:
            file.truncate(CHUNK * self._size)
            self._map = mmap.mmap(file.fileno(), CHUNK * self._size)
        self._maps.append(self._map)
        self._at, self._end = 0, CHUNK * self._size


def records(directory: Path, name: str, kind: str) -> Iterator[list[tuple[Any, ...]]]:
    """What a log holds, a file at a time."""
    struct, chunk = KINDS[kind], 0
    while (path := directory / f"{kind}-{name}.{chunk}").exists():
        data = path.read_bytes()
        yield [record for record in struct.iter_unpack(data) if record[0]]
        chunk += 1


def all_records(directory: Path, name: str, kind: str) -> list[tuple[Any, ...]]:
    """What a log holds."""
    return [record for batch in records(directory, name, kind) for record in batch]
