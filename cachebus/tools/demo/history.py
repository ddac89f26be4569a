"""History logs of what nodes see, written as it happens, and the check of every read against all writes afterwards.

All times are `clock.monotonic` in seconds, which is one clock for all processes of a machine.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple

FLUSH_BYTES: Final = 1 << 16
BATCH: Final = 4_096


class DemoRead(NamedTuple):
    """A read that gave a version, and when it began."""

    word: int
    version: int
    started_s: float


class DemoWrite(NamedTuple):
    """A write whose invalidation returned: when it was called and returned, and its position in the shard's history."""

    word: int
    version: int
    called_s: float
    returned_s: float
    epoch: int
    seq: int


class Applied(NamedTuple):
    """A node has applied all events of the epoch up to seq, from this time on."""

    epoch: int
    seq: int
    at_s: float


READ: Final = Struct("<IId")
WRITE: Final = Struct("<IIddQQ")
APPLIED: Final = Struct("<QQd")


def log_path(directory: Path, node: int, kind: str) -> Path:
    """The file of a node's history log. `kind`: reads, writes or applied."""
    return directory / f"{kind}-{node}"


class DemoLog:
    """A growing file of records of one kind; a context manager."""

    def __init__(self, path: Path, kind: Struct) -> None:
        self._file = path.open("wb", buffering=0)
        self._pack = kind.pack
        self._waiting = bytearray()

    def __enter__(self) -> DemoLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._file.close()

    def add(self, *fields: float) -> None:
        """Append a record."""
        self._waiting += self._pack(*fields)
        if len(self._waiting) >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.write(self._waiting)
        self._waiting.clear()


def records(path: Path, kind: Struct) -> Iterator[list[tuple[Any, ...]]]:
    """The records of a log, some thousand at a time. A last record that a kill has cut off is left out."""
    with path.open("rb") as file:
        while data := file.read(kind.size * BATCH):
            whole = len(data) - len(data) % kind.size
            yield list(kind.iter_unpack(data[:whole]))


class DemoCheck:
    """Checks reads against writes. A read is stale if it gives a version that was replaced when it began, by a write
    whose invalidation had returned."""

    def __init__(self, writes: Iterable[DemoWrite], bound_s: float) -> None:
        self.bound_s = bound_s
        self.reads = self.stale = self.stale_beyond = 0
        self.oldest_s = 0.0
        """The age of the stalest read: how long its value had been replaced when it began, in seconds."""
        self._replaced: dict[int, tuple[list[float], list[int]]] = {}
        by_word: dict[int, list[DemoWrite]] = {}
        for write in writes:
            by_word.setdefault(write.word, []).append(write)
        for word, group in by_word.items():
            group.sort(key=lambda write: write.returned_s)
            # Invalidations may return in another order than their writes were committed in: the highest version counts.
            newest = list(accumulate((write.version for write in group), max))
            self._replaced[word] = [write.returned_s for write in group], newest

    def add(self, reads: Iterable[tuple[Any, ...]]) -> None:
        """Check some reads."""
        for word, version, started_s in reads:
            self.reads += 1
            known = self._replaced.get(word)
            if known is not None:
                self._check(*known, version, started_s)

    def _check(self, returned: list[float], newest: list[int], version: float, started_s: float) -> None:
        before = bisect_left(returned, started_s)
        if not before or newest[before - 1] <= version:
            return
        age_s = started_s - returned[bisect_right(newest, version)]
        self.stale += 1
        self.stale_beyond += age_s > self.bound_s
        self.oldest_s = max(self.oldest_s, age_s)
