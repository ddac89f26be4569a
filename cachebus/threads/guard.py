"""A write guard for synchronous code."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from cachebus.receipt import Receipt
from cachebus.threads.crossing import Crossing, Limit
from cachebus.writing.guard import WriteGuard


class BlockingWriteGuard:
    """One block in which a transaction is guarded: `with cache.write_guard(...) as guard:`. As `WriteGuard`."""

    def __init__(self, guard: WriteGuard, limit: Limit) -> None:
        """`guard`: what stands on the event loop. `limit`: how long its beginning and its end may be waited for."""
        self._guard, self._limit = guard, limit

    @property
    def receipt(self) -> Receipt:
        """As `WriteGuard.receipt`."""
        return self._guard.receipt

    @property
    def lost(self) -> bool:
        """As `WriteGuard.lost`."""
        return self._guard.lost

    def nothing_written(self) -> None:
        """As `WriteGuard.nothing_written`."""
        self._guard.nothing_written()

    def watch(self, session: Any) -> None:
        """As `WriteGuard.watch`."""
        self._guard.watch(session)

    def __enter__(self) -> Self:
        Crossing().run(self._guard.__aenter__(), self._limit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Crossing().run(self._guard.__aexit__(kind, error, trace), self._limit)
