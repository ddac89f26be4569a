"""History logs: what a node sees, recorded as it happens, in memory-mapped files that outlive a kill of the process.

All times are `clock.monotonic` in seconds, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any, Final

CHUNK: Final = 1 << 16
"""Records in a file. The files are sparse, so unused space costs nothing."""

READ: Final = Struct("<IId")
"""item | verb, version, when it began."""
WRITE: Final = Struct("<IIdddQQ")
"""item | verb, version, when it was called, when it returned (0: never), when it failed last (0: never; behind a guard:
when the guard ends by itself), epoch, seq."""
LOAD: Final = Struct("<IIdd")
"""item | kind of load, version (0: it failed), when it began, when it ended (0: never)."""
SHOWN: Final = Struct("<Idd")
"""item, when a read of it began, when it was answered. Kept for types whose sources rest ("shown"), and for reads that
gave nothing ("absent")."""
TOKEN: Final = Struct("<IIdII")
"""item | verb, version, when it began, version that the token stands for, kind of token."""
APPLIED: Final = Struct("<QQd")
"""epoch, seq, since when the node had applied it."""
DISTURBANCE: Final = Struct("<Idd")
"""kind (see `disturbances`), from when, until when."""
ANOMALY: Final = Struct("<IIIId")
"""item | verb, kind (see `anomalies`), two figures of that kind, when it began."""
REST: Final = Struct("<III")
"""item, version in L1, version in L2 (0: absent)."""

VERB_SHIFT: Final = 24
WAITED: Final = 64
"""A flag beside a write's verb: it was made with `wait="nodes"`."""
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
    """An append-only list of records of one kind. The first field of a record is never 0: that marks unused space."""

    def __init__(self, directory: Path, name: str, kind: str) -> None:
        self._struct = KINDS[kind]
        self._base = directory / f"{kind}-{name}"
        self._pack_into = self._struct.pack_into
        self._size = self._struct.size
        self._maps: list[mmap.mmap] = []
        self._at = self._end = 0
        self._map: mmap.mmap

    def add(self, *fields: float) -> int:
        """Append a record; returns its place."""
        at = self._at
        if at == self._end:
            self._turn()
            at = 0
        self._pack_into(self._map, at, *fields)
        self._at = at + self._size
        return (len(self._maps) - 1) * CHUNK + at // self._size

    def change(self, place: int, *fields: float) -> None:
        """Overwrite the record at this place."""
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
    """The records of a log, one file at a time."""
    struct, chunk = KINDS[kind], 0
    while (path := directory / f"{kind}-{name}.{chunk}").exists():
        data = path.read_bytes()
        yield [record for record in struct.iter_unpack(data) if record[0]]
        chunk += 1


def all_records(directory: Path, name: str, kind: str) -> list[tuple[Any, ...]]:
    """All records of a log."""
    return [record for batch in records(directory, name, kind) for record in batch]
