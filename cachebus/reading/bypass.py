"""Reads that pass a cache by: inside `with cache.bypassed():`, in this task and in those that it starts.

A hit must not pay for it. So L1's entries are put behind something that asks where it is called (`BypassedEntries`),
but only while a block is entered somewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol


@dataclass(eq=False, slots=True)
class _Block:
    """One that was entered. What outlives it reads as ever."""

    owner: Bypass
    outer: _Block | None
    is_over: bool = False


_innermost: ContextVar[_Block | None] = ContextVar("cachebus_bypass", default=None)


class HoldsEntries(Protocol):
    """A cache, whose hits go by what it has there."""

    _entries: Any


class Bypass:
    """The blocks of one cache, and of those through which other threads see it."""

    __slots__ = ("_asking", "_lock", "blocks")

    def __init__(self) -> None:
        self.blocks = 0
        """How many are entered, in whichever tasks and threads."""
        self._asking: list[tuple[HoldsEntries, BypassedEntries, Any]] = []
        """Those whose hits ask, by what they ask, and what they go by otherwise."""
        self._lock = Lock()

    def here(self) -> bool:
        """Whether a read passes the cache by that is called here."""
        block = _innermost.get() if self.blocks else None
        while block is not None and (block.is_over or block.owner is not self):
            block = block.outer
        return block is not None

    @contextmanager
    def entered(self, *holders: HoldsEntries) -> Iterator[None]:
        """Inside it reads pass the cache by. `holders`: all whose hits go by its entries."""
        block = _Block(self, _innermost.get())
        _innermost.set(block)
        with self._lock:
            self.blocks += 1
            for holder in holders:
                entries = holder._entries
                if not isinstance(entries, BypassedEntries):
                    asking = holder._entries = BypassedEntries(self, entries)
                    self._asking.append((holder, asking, entries))
        try:
            yield
        finally:
            block.is_over = True
            with self._lock:
                self.blocks -= 1
                if not self.blocks:
                    self._ask_no_more()
            if _innermost.get() is block:  # in another task than it was entered in there is nothing to take back
                _innermost.set(block.outer)

    def _ask_no_more(self) -> None:
        for holder, asking, entries in self._asking:
            if holder._entries is asking:  # else it was closed
                holder._entries = entries
        self._asking.clear()


def block_here() -> object:
    """The innermost block of any cache that a call made here is in, None where it is in none: what two calls have in
    common of which reads pass which cache by."""
    block = _innermost.get()
    while block is not None and block.is_over:
        block = block.outer
    return block


class BypassedEntries:
    """L1's entries as a hit sees them while a block is entered somewhere."""

    __slots__ = ("_bypass", "_entries")

    def __init__(self, bypass: Bypass, entries: Mapping[str, Any]) -> None:
        self._bypass, self._entries = bypass, entries

    def get(self, name: str) -> Any:
        """The entry, or None, as for who passes the cache by."""
        return None if self._bypass.here() else self._entries.get(name)
